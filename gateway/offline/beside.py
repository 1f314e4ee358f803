"""A candidate beside the stable version: rows of the same time, so that a change of the traffic blames nobody.

The stable version is the one that the route gives by default. Rows that were answered by default say so in their
reason, and so name the default variant (`stable`, or `blue` and `green` in turn).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from gateway.flags.compile import DEFAULT, DISABLED, ERROR, FELL_BACK, PINNED, SPLIT, STATIC
from gateway.offline.chunks import Chunk
from gateway.offline.cuts import Cut
from gateway.offline.drift import Column, ColumnDrift, Expected, Rules, compare, count_table, cramers_v, ks
from gateway.offline.history import MAX_WINDOWS as _MAX_WINDOWS
from gateway.offline.history import AlarmRule, FinishedWindow, alarms, judged, window_of
from gateway.offline.reference import Reference, ReferenceColumn
from gateway.offline.report import BesideReport, status_of
from gateway.offline.rows import Drawn, Rows, Shape, no_rows, rows_of, shape_of
from gateway.tensors import Array

# The default variant's name, until rows have said another one.
STABLE = "stable"
_BY_DEFAULT = frozenset({STATIC, DEFAULT, DISABLED, ERROR, FELL_BACK})
# A candidate that a split gave nothing for so long is looked at by what rules give it.
_SPLIT_ENDED_NS = 3600 * 10**9

Find = Callable[[str, str], Reference | None]
# Variant and reason of a row.
_Kind = tuple[str, str]


@dataclass(slots=True)
class Beside:
    """Rows of one candidate since its last finished window, and rows of the stable version since then.

    baseline: the stable version. digests: of both packages. shapes: the columns that both have, as each describes them.
    by_split: only rows that the split decided are taken, on both sides: those that a rule sends somewhere may be of
    another kind. newest_ns: of the candidate. Of each side at most twice limit_rows rows are held: more are drawn from
    at random.
    """

    limit_rows: int
    baseline: str
    digests: tuple[str, str]
    shapes: tuple[Shape, Shape]
    by_split: bool
    newest_ns: int = 0
    candidate_seen: int = 0
    history: list[FinishedWindow] = field(default_factory=list)
    candidate_rows: Drawn = field(init=False)
    baseline_rows: Drawn = field(init=False)

    def __post_init__(self) -> None:
        self.candidate_rows, self.baseline_rows = Drawn(self.limit_rows), Drawn(self.limit_rows)

    def add_candidate(self, rows: Rows) -> None:
        own = rows.of_shape(self.shapes[0])
        if own is not None:
            self.newest_ns = max(self.newest_ns, int(rows.ts_ns.max()))
            self.candidate_rows.add(own)
            self.candidate_seen += len(own)

    def add_baseline(self, rows: Rows) -> None:
        own = rows.of_shape(self.shapes[1])
        if own is not None:
            self.baseline_rows.add(own)

    def pair(self) -> tuple[Rows, Rows]:
        """The rows of both sides between the first and the last of the candidate's, that side's oldest first."""
        mine = self.candidate_rows.rows(self.shapes[0]).drawn(self.limit_rows).in_order()
        theirs = self.baseline_rows.rows(self.shapes[1])
        if not len(mine):
            return mine, no_rows(self.shapes[1])
        theirs = theirs.taken((theirs.ts_ns >= mine.ts_ns[0]) & (theirs.ts_ns <= mine.ts_ns[-1]))
        return mine, theirs.drawn(self.limit_rows)

    def finish(self, window: FinishedWindow) -> None:
        self.history = [*self.history, window][-_MAX_WINDOWS:]
        self.candidate_rows, self.baseline_rows = Drawn(self.limit_rows), Drawn(self.limit_rows)
        self.candidate_seen = 0

    def to_plain(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "digests": self.digests,
            "shapes": self.shapes,
            "by_split": self.by_split,
            "newest_ns": self.newest_ns,
            "candidate_seen": self.candidate_seen,
            "history": self.history,
            "candidate_rows": self.candidate_rows.rows(self.shapes[0]).to_plain(),
            "baseline_rows": self.baseline_rows.rows(self.shapes[1]).to_plain(),
        }


def _restored(plain: Mapping[str, Any], limit_rows: int) -> Beside:
    """The inverse of Beside.to_plain. Raises KeyError, TypeError or ValueError if it is no such thing."""
    (mine, theirs), (own, other) = plain["digests"], map(shape_of, plain["shapes"])
    pair = Beside(limit_rows, plain["baseline"], (mine, theirs), (own, other), plain["by_split"], plain["newest_ns"])
    pair.candidate_seen = plain["candidate_seen"]
    pair.history = [window_of(window) for window in plain["history"]]
    pair.candidate_rows.add(rows_of(plain["candidate_rows"], own))
    pair.baseline_rows.add(rows_of(plain["baseline_rows"], other))
    return pair


class Besides:
    """Every candidate of every model beside its stable version. Used by one thread."""

    def __init__(self, limit_rows: int) -> None:
        self._limit_rows = limit_rows
        # model -> newest row that names the default variant: time, name
        self._defaults: dict[str, tuple[int, str]] = {}
        # model -> time of the newest row that its default variant answered, and by which version and package
        self._stable: dict[str, tuple[int, str, str]] = {}
        self._pairs: dict[tuple[str, str], Beside] = {}

    def take(self, chunk: Chunk, rows: Rows, find: Find) -> None:
        """Count rows that were drawn at random, in the order of the log. rows: those of *chunk*, or its last ones.

        Rows that do not say variant and reason are passed over, and those that name their version themselves: the route
        does not send them there.
        """
        route = chunk.route[len(chunk) - len(rows) :]
        kinds: dict[int, _Kind] = {}
        for place in np.flatnonzero(np.bincount(route)).tolist():
            variant, reason = chunk.routes[place]
            if variant is not None and reason not in (None, PINNED):
                kinds[place] = (variant, reason)
        if not kinds:
            return
        if self._is_steady(chunk, kinds, rows, route, find):
            self._take(chunk, kinds, rows, route, find)
            return
        # What one row changes decides about the next. Rows that follow each other and are of one kind go together.
        bounds = [0, *(np.flatnonzero(route[1:] != route[:-1]) + 1).tolist(), len(rows)]
        for start, stop in pairwise(bounds):
            kind = kinds.get(route[start])
            if kind is None:
                continue
            middle = start
            at_ns, name = self._defaults.get(chunk.model, (0, STABLE))
            if kind[1] in _BY_DEFAULT and kind[0] != name:  # a row that is older than others names no default
                newer = np.flatnonzero(rows.ts_ns[start:stop] >= at_ns)
                middle = start + int(newer[0]) if newer.size else stop
            for first, end in ((start, middle), (middle, stop)):
                if first < end:
                    self._take(chunk, kinds, rows.part(first, end), route[first:end], find)

    def _is_steady(self, chunk: Chunk, kinds: Mapping[int, _Kind], rows: Rows, route: Array, find: Find) -> bool:
        """Whether rows of these *kinds* are treated alike in whatever order they come."""
        _, name = self._defaults.get(chunk.model, (0, STABLE))
        if any(reason in _BY_DEFAULT and variant != name for variant, reason in kinds.values()):
            return False
        candidates = {place: reason for place, (variant, reason) in kinds.items() if variant != name}
        baseline = self._stable.get(chunk.model, (0, "", ""))[1]
        if not candidates or baseline == chunk.version:
            return True
        if len(candidates) < len(kinds):
            return False
        others = [place for place, reason in candidates.items() if reason != SPLIT]
        if len(others) in (0, len(candidates)) or not baseline:
            return True
        pair = self._known_pair(chunk)
        if pair is None:
            return find(chunk.model, chunk.version) is None or find(chunk.model, baseline) is None
        newest_ns = int(rows.ts_ns[np.isin(route, others)].max())
        return pair.by_split and newest_ns - pair.newest_ns <= _SPLIT_ENDED_NS

    def _take(self, chunk: Chunk, kinds: Mapping[int, _Kind], rows: Rows, route: Array, find: Find) -> None:
        """Count rows among which the default variant does not change."""
        model, package = chunk.model, (chunk.version, chunk.digest)
        naming = [place for place, (_variant, reason) in kinds.items() if reason in _BY_DEFAULT]
        at_ns, name = self._defaults.get(model, (0, STABLE))
        by_default = np.isin(route, naming)
        if by_default.any() and (newest_ns := int(rows.ts_ns[by_default].max())) >= at_ns:
            at_ns, name = newest_ns, kinds[int(route[by_default][0])][0]
            self._defaults[model] = (at_ns, name)
        stable = [place for place, (variant, _reason) in kinds.items() if variant == name]
        split = [place for place, (_variant, reason) in kinds.items() if reason == SPLIT]
        is_stable, is_split = np.isin(route, stable), np.isin(route, split)
        if is_stable.any():
            newest_ns = int(rows.ts_ns[is_stable].max())
            if newest_ns >= self._stable.get(model, (0, "", ""))[0]:
                self._stable[model] = (newest_ns, *package)
            for (candidate, _), waiting in self._pairs.items():
                if candidate == model and (waiting.baseline, waiting.digests[1]) == package:
                    waiting.add_baseline(rows.taken(is_stable & is_split if waiting.by_split else is_stable))
        is_candidate = np.isin(route, list(kinds)) & ~is_stable
        if is_candidate.any():
            self._take_candidate(chunk, rows.taken(is_candidate), is_split[is_candidate], find)

    def _take_candidate(self, chunk: Chunk, rows: Rows, is_split: Array, find: Find) -> None:
        """Count rows of a candidate; of those that the split decided and others, if there are both, the first."""
        known = self._known_pair(chunk)
        by_split = bool(is_split.any())
        if by_split:
            rows = rows.taken(is_split)
        elif known is not None and known.by_split:
            later = np.flatnonzero(rows.ts_ns - known.newest_ns > _SPLIT_ENDED_NS)
            rows = rows.part(int(later[0]) if later.size else len(rows), len(rows))
        if len(rows) and (pair := self._pair(chunk, find, by_split=by_split)) is not None:
            pair.add_candidate(rows)

    def _known_pair(self, chunk: Chunk) -> Beside | None:
        return self._pairs.get((chunk.model, chunk.version))

    def _pair(self, chunk: Chunk, find: Find, *, by_split: bool) -> Beside | None:
        """Where a candidate's rows belong; None if there is nothing to compare them with."""
        _, baseline, baseline_digest = self._stable.get(chunk.model, (0, "", ""))
        if baseline in ("", chunk.version):
            return None
        pair = self._known_pair(chunk)
        described = (baseline, (chunk.digest, baseline_digest), by_split)
        if pair is None or (pair.baseline, pair.digests, pair.by_split) != described:
            mine, theirs = find(chunk.model, chunk.version), find(chunk.model, baseline)
            if mine is None or theirs is None:
                return None
            have = {(other.role, other.name, other.kind): other for other in theirs.shape}
            shared = [(own, have.get((own.role, own.name, own.kind))) for own in mine.shape]
            both = [(own, other) for own, other in shared if other is not None]
            shapes = tuple(own for own, _ in both), tuple(other for _, other in both)
            pair = Beside(self._limit_rows, baseline, (chunk.digest, baseline_digest), shapes, by_split)
            self._pairs[chunk.model, chunk.version] = pair
        return pair

    def finish(self, rules: Rules, find: Find) -> set[str]:
        """Judge the windows of candidates that have answered as many rows as a window has; returns the models."""
        models = set()
        for (model, version), pair in self._pairs.items():
            if pair.candidate_seen < self._limit_rows:
                continue
            rows, columns = _columns(pair, find(model, version), find(model, pair.baseline))
            pair.finish(judged(columns, Cut(rows, pair.candidate_seen), rules))
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
            int(rows.ts_ns[0]) if len(rows) else 0,
            int(rows.ts_ns[-1]) if len(rows) else 0,
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
            {"model": model, "version": version, **pair.to_plain()} for (model, version), pair in self._pairs.items()
        ]
        return {"defaults": self._defaults, "stable": self._stable, "pairs": pairs}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take back what to_plain gave. Raises KeyError, TypeError or ValueError if it is no such thing."""
        self._defaults = {model: (ts_ns, variant) for model, (ts_ns, variant) in plain["defaults"].items()}
        self._stable = {model: (ts_ns, version, digest) for model, (ts_ns, version, digest) in plain["stable"].items()}
        for pair in plain["pairs"]:
            self._pairs[pair["model"], pair["version"]] = _restored(pair, self._limit_rows)


def _columns(pair: Beside, mine: Reference | None, theirs: Reference | None) -> tuple[Rows, list[Column]]:
    """The candidate's rows, and the columns with the stable version's rows as reference; none without references."""
    now, then = pair.pair()
    if mine is None or theirs is None:
        return now, []
    of_mine, of_theirs = ({(c.role, c.name): c for c in side.columns} for side in (mine, theirs))
    columns = []
    for own, (baseline, _), (current, wrong_type) in zip(pair.shapes[0], then.values(), now.values(), strict=True):
        key = (own.role, own.name)
        if key not in of_mine or key not in of_theirs:
            continue
        expected = _expected(of_mine[key], of_theirs[key]) if own.role == "output" else None
        columns.append(Column(own.name, own.role, own.kind, baseline, current, wrong_type, expected))
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
