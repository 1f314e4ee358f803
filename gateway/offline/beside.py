"""A candidate beside the stable version: rows of the same time, so that a change of the traffic blames nobody.

The stable version is the one that the route gives by default. Rows that were answered by default say so in their
reason, and so name the default variant (`stable`, or `blue` and `green` in turn).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.flags.compile import DEFAULT, DISABLED, ERROR, FELL_BACK, PINNED, SPLIT, STATIC
from gateway.offline.cuts import Row, drawn
from gateway.offline.drift import Column, ColumnDrift, Expected, Rules, compare, count_table, cramers_v, ks
from gateway.offline.history import MAX_WINDOWS as _MAX_WINDOWS
from gateway.offline.history import AlarmRule, FinishedWindow, alarms, judged, window_of
from gateway.offline.reference import Reference, ReferenceColumn, column_of
from gateway.offline.report import BesideReport, status_of
from gateway.tensors import Array

# The default variant's name, until rows have said another one.
STABLE = "stable"
_BY_DEFAULT = frozenset({STATIC, DEFAULT, DISABLED, ERROR, FELL_BACK})
# A candidate that a split gave nothing for so long is looked at by what rules give it.
_SPLIT_ENDED_NS = 3600 * 10**9

Find = Callable[[str, str], Reference | None]


@dataclass(slots=True)
class Beside:
    """Rows of one candidate since its last finished window, and rows of the stable version since then.

    baseline: the stable version. digests: of both packages. columns: those that both have. by_split: only rows that the
    split decided are taken, on both sides: those that a rule sends somewhere may be of another kind. newest_ns: of the
    candidate. Of each side at most twice limit_rows rows are held: more are drawn from at random.
    """

    limit_rows: int
    baseline: str
    digests: tuple[str, str]
    columns: tuple[tuple[str, str], ...]
    by_split: bool
    newest_ns: int = 0
    candidate_rows: list[Row] = field(default_factory=list)
    baseline_rows: list[Row] = field(default_factory=list)
    candidate_seen: int = 0
    history: list[FinishedWindow] = field(default_factory=list)

    def row(self, record: Mapping[str, Any]) -> Row:
        values = [record[f"{role}s"].get(name) for role, name in self.columns]
        return record["ts_ns"], record["prediction_id"], record["row"], values

    def pair(self) -> tuple[list[Row], list[Row]]:
        """The rows of both sides between the first and the last of the candidate's, oldest first."""
        mine = sorted(drawn(self.candidate_rows, self.limit_rows), key=lambda row: row[:3])
        if not mine:
            return [], []
        theirs = [row for row in self.baseline_rows if mine[0][0] <= row[0] <= mine[-1][0]]
        return mine, drawn(theirs, self.limit_rows)

    def finish(self, window: FinishedWindow) -> None:
        self.history = [*self.history, window][-_MAX_WINDOWS:]
        self.candidate_rows, self.baseline_rows, self.candidate_seen = [], [], 0


class Besides:
    """Every candidate of every model beside its stable version. Used by one thread."""

    def __init__(self, limit_rows: int) -> None:
        self._limit_rows = limit_rows
        self._defaults: dict[
            str, tuple[int, str]
        ] = {}  # model -> newest row that names the default variant: time, name
        # model -> time of the newest row that its default variant answered, and by which version and package
        self._stable: dict[str, tuple[int, str, str]] = {}
        self._pairs: dict[tuple[str, str], Beside] = {}

    def take(self, record: Mapping[str, Any], find: Find) -> None:
        """Count one row that was drawn at random. Raises KeyError, TypeError or AttributeError if it is no such row."""
        model, version, digest, ts_ns = record["model"], record["version"], record["digest"], record["ts_ns"]
        reason = record["reason"]
        if reason == PINNED:
            return  # who asks for a version by name is not sent there by the route
        if reason in _BY_DEFAULT and ts_ns >= self._defaults.get(model, (0, ""))[0]:
            self._defaults[model] = (ts_ns, record["variant"])
        if record["variant"] == self._defaults.get(model, (0, STABLE))[1]:
            if ts_ns >= self._stable.get(model, (0, "", ""))[0]:
                self._stable[model] = (ts_ns, version, digest)
            for (name, _), waiting in self._pairs.items():
                is_its = name == model and (waiting.baseline, waiting.digests[1]) == (version, digest)
                if is_its and (reason == SPLIT or not waiting.by_split):
                    waiting.baseline_rows.append(waiting.row(record))
                    if len(waiting.baseline_rows) >= 2 * self._limit_rows:
                        waiting.baseline_rows = drawn(waiting.baseline_rows, self._limit_rows)
            return
        pair = self._pair(model, version, digest, find, by_split=reason == SPLIT, ts_ns=ts_ns)
        if pair is not None:
            pair.newest_ns = max(pair.newest_ns, ts_ns)
            pair.candidate_rows.append(pair.row(record))
            pair.candidate_seen += 1
            if len(pair.candidate_rows) >= 2 * self._limit_rows:
                pair.candidate_rows = drawn(pair.candidate_rows, self._limit_rows)

    def _pair(self, model: str, version: str, digest: str, find: Find, *, by_split: bool, ts_ns: int) -> Beside | None:
        """Where a candidate's row belongs; None if there is nothing to compare it with."""
        _, baseline, baseline_digest = self._stable.get(model, (0, "", ""))
        if baseline in ("", version):
            return None
        pair = self._pairs.get((model, version))
        if pair is not None and pair.by_split and not by_split and ts_ns - pair.newest_ns <= _SPLIT_ENDED_NS:
            return None
        described = (baseline, (digest, baseline_digest), by_split)
        if pair is None or (pair.baseline, pair.digests, pair.by_split) != described:
            mine, theirs = find(model, version), find(model, baseline)
            if mine is None or theirs is None:
                return None
            have = {(column.role, column.name, column.kind) for column in theirs.columns}
            shared = tuple((c.role, c.name) for c in mine.columns if (c.role, c.name, c.kind) in have)
            pair = Beside(self._limit_rows, baseline, (digest, baseline_digest), shared, by_split)
            self._pairs[model, version] = pair
        return pair

    def finish(self, rules: Rules, find: Find) -> set[str]:
        """Judge the windows of candidates that have answered as many rows as a window has; returns the models."""
        models = set()
        for (model, version), pair in self._pairs.items():
            if pair.candidate_seen < self._limit_rows:
                continue
            rows, columns = _columns(pair, find(model, version), find(model, pair.baseline))
            pair.finish(judged(columns, rows, pair.candidate_seen, rules))
            models.add(model)
        return models

    def examine(self, model: str, version: str, rules: Rules, rule: AlarmRule, find: Find) -> BesideReport | None:
        """What is found now; None if the version is not beside another one."""
        pair = self._pairs.get((model, version))
        if pair is None or self._stable.get(model, (0, "", ""))[1] != pair.baseline:
            return None
        rows, columns = _columns(pair, find(model, version), find(model, pair.baseline))
        found: list[ColumnDrift] = compare(columns, rules)
        status, reason = status_of(found)
        alarmed, quiet = alarms(pair.history, rule)
        return BesideReport(
            pair.baseline,
            status,
            reason,
            len(rows),
            len(columns[0].reference) if columns else 0,
            rows[0][0] if rows else 0,
            rows[-1][0] if rows else 0,
            tuple(found),
            tuple(alarmed),
            tuple(quiet),
        )

    def forget(self, model: str, version: str) -> None:
        """Drop a version whose package is gone."""
        self._pairs.pop((model, version), None)
        if self._stable.get(model, (0, "", ""))[1] == version:
            del self._stable[model]

    def to_plain(self) -> dict[str, Any]:
        pairs = [
            {
                "model": model,
                "version": version,
                **{name: getattr(pair, name) for name in Beside.__slots__ if name != "limit_rows"},
            }
            for (model, version), pair in self._pairs.items()
        ]
        return {"defaults": self._defaults, "stable": self._stable, "pairs": pairs}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take back what to_plain gave. Raises KeyError, TypeError or ValueError if it is no such thing."""
        self._defaults = {model: (ts_ns, variant) for model, (ts_ns, variant) in plain.get("defaults", {}).items()}
        self._stable = {model: (ts_ns, version, digest) for model, (ts_ns, version, digest) in plain["stable"].items()}
        for pair in plain["pairs"]:
            mine, theirs = pair["digests"]
            self._pairs[pair["model"], pair["version"]] = Beside(
                self._limit_rows,
                pair["baseline"],
                (mine, theirs),
                tuple((role, name) for role, name in pair["columns"]),
                pair.get("by_split", False),
                pair.get("newest_ns", 0),
                [(ts_ns, identity, row, values) for ts_ns, identity, row, values in pair["candidate_rows"]],
                [(ts_ns, identity, row, values) for ts_ns, identity, row, values in pair["baseline_rows"]],
                pair["candidate_seen"],
                [window_of(window) for window in pair["history"]],
            )


def _columns(pair: Beside, mine: Reference | None, theirs: Reference | None) -> tuple[list[Row], list[Column]]:
    """The candidate's rows, and the columns with the stable version's rows as reference; none without references."""
    now, then = pair.pair()
    if mine is None or theirs is None:
        return now, []
    of_mine, of_theirs = ({(c.role, c.name): c for c in side.columns} for side in (mine, theirs))
    columns = []
    for index, key in enumerate(pair.columns):
        if key not in of_mine or key not in of_theirs:
            continue
        described = of_mine[key]
        baseline = column_of(of_theirs[key], [row[3][index] for row in then]).current
        current = column_of(described, [row[3][index] for row in now])
        expected = _expected(described, of_theirs[key]) if described.role == "output" else None
        role, kind = described.role, described.kind
        columns.append(Column(described.name, role, kind, baseline, current.current, current.wrong_type, expected))
    return now, columns


def _expected(mine: ReferenceColumn, theirs: ReferenceColumn) -> Expected | None:
    """How far the outputs of two versions differ on what they were built on: a new model may answer differently."""
    sides = [_present(side.values) for side in (theirs, mine)]
    if not all(len(side) for side in sides):
        return None
    if mine.kind == "numeric":
        effect = ks(*sides)[0]
    else:
        table = count_table(sides[0].tolist(), sides[1].tolist())
        effect = cramers_v(table) if table.shape[1] > 1 else 0.0
    return Expected(effect, len(sides[0]), len(sides[1]))


def _present(values: Array) -> Array:
    return values[[value is not None and value == value for value in values.tolist()]]
