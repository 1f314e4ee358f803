"""A slow reader of dictionaries: what the monitor has to find in a log, however it reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from gateway.offline.drift import Column, Expected, Rules, compare, count_table, cramers_v, ks
from gateway.offline.history import AlarmRule, FinishedWindow, alarms, finding, timeline
from gateway.offline.measures import measure
from gateway.offline.outside import outside_of
from gateway.offline.reference import Reference, ReferenceColumn, count_no_numbers, values_of
from gateway.offline.report import DriftDocument, status_of

S = 10**9
LIMIT = 12
RULES = Rules(5, 0.05, 0.08)
ALARM = AlarmRule(2, 3)
BY_DEFAULT = {"STATIC", "DEFAULT"}
Record = dict[str, Any]
Row = tuple[int, str, int, Record]


def key(row: Row) -> tuple[int, str, int]:
    return row[:3]


def lot(row: Row) -> bytes:
    return hashlib.blake2b(f"{row[1]}/{row[2]}".encode(), digest_size=8).digest()


def drawn(rows: list[Row]) -> list[Row]:
    return rows if len(rows) <= LIMIT else sorted(rows, key=lot)[:LIMIT]


def column(described: ReferenceColumn, rows: Sequence[Row]) -> Column:
    plain = [row[3][f"{described.role}s"].get(described.name) for row in rows]
    current = values_of(plain, described.kind, described.datatype)
    wrong_type = count_no_numbers(plain) if described.kind == "numeric" else 0
    return Column(described.name, described.role, described.kind, described.values, current, wrong_type)


def judged(columns: Sequence[Column], rows: Sequence[Row], rows_seen: int) -> FinishedWindow:
    ids = [row[1] for row in rows]
    found = tuple(finding(one, of, ids) for one, of in zip(compare(columns, RULES), columns, strict=True))
    shares = [told.share if told else None for told in (outside_of(columns, ids), outside_of(columns, ids, "output"))]
    return FinishedWindow(rows[0][0], rows[-1][0], len(rows), rows_seen, found, *shares)


@dataclass
class Version:
    digest: str
    total: int = 0
    late: int = 0
    ended_ns: int = 0
    rows: list[Row] = field(default_factory=list)
    uncut: list[Row] = field(default_factory=list)
    history: list[FinishedWindow] = field(default_factory=list)


@dataclass
class Pair:
    described: tuple[str, str, str, bool]
    newest_ns: int = 0
    seen: int = 0
    mine: list[Row] = field(default_factory=list)
    theirs: list[Row] = field(default_factory=list)
    history: list[FinishedWindow] = field(default_factory=list)


class Slow:
    """What the monitor is to do, row by row and without any thought of speed."""

    def __init__(self, references: Mapping[str, Reference], window_ns: int) -> None:
        self.references = references
        self.window_ns = window_ns
        self.versions: dict[str, Version] = {}
        self.default = (0, "stable")
        self.stable = (0, "", "")
        self.pairs: dict[str, Pair] = {}

    def portion(self, lines: Sequence[bytes]) -> None:
        """One step of the monitor, which reads so much."""
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["sample_reason"] == "random":
                self.take(record)
        for version, pair in self.pairs.items():
            if pair.seen >= LIMIT:
                rows, columns = self.beside(version, pair)
                pair.history.append(judged(columns, rows, pair.seen))
                pair.mine, pair.theirs, pair.seen = [], [], 0
        for version, known in self.versions.items():
            while cut := self.cut(known):
                rows = sorted(drawn(cut), key=key) if self.window_ns else cut
                columns = [column(described, rows) for described in self.references[version].columns]
                known.history.append(judged(columns, rows, len(cut)))

    def take(self, record: Record) -> None:
        version, ts_ns = record["version"], record["ts_ns"]
        known = self.versions.get(version)
        if known is None or known.digest != record["digest"]:
            if known is not None and ts_ns < max((row[0] for row in known.rows), default=0):
                return
            known = self.versions[version] = Version(record["digest"], known.total if known else 0)
        row = (ts_ns, record["prediction_id"], record["row"], record)
        known.total += 1
        known.rows.append(row)
        if ts_ns < known.ended_ns:
            known.late += 1
        else:
            known.uncut.append(row)
        self.route(version, record["variant"], record["reason"], row)

    def cut(self, known: Version) -> list[Row]:
        known.uncut.sort(key=key)
        if self.window_ns:  # the clock of these tests is a day ahead: every window is over
            period = known.uncut[0][0] // self.window_ns if known.uncut else 0
            taken = [row for row in known.uncut if row[0] // self.window_ns == period]
            known.ended_ns = (period + 1) * self.window_ns if taken else known.ended_ns
        else:
            taken = known.uncut[:LIMIT] if len(known.uncut) >= LIMIT else []
        known.uncut = known.uncut[len(taken) :]
        return taken

    def route(self, version: str, variant: str, reason: str, row: Row) -> None:
        if reason == "PINNED":
            return
        digest, by_split = row[3]["digest"], reason == "SPLIT"
        if reason in BY_DEFAULT and row[0] >= self.default[0]:
            self.default = (row[0], variant)
        if variant == self.default[1]:
            if row[0] >= self.stable[0]:
                self.stable = (row[0], version, digest)
            for pair in self.pairs.values():
                if (pair.described[0], pair.described[2]) == (version, digest) and by_split >= pair.described[3]:
                    pair.theirs.append(row)
                    pair.theirs = drawn(pair.theirs) if len(pair.theirs) >= 2 * LIMIT else pair.theirs
            return
        baseline = self.stable[1]
        if baseline in ("", version):
            return
        known = self.pairs.get(version)
        if known and known.described[3] and not by_split and row[0] - known.newest_ns <= 3600 * S:
            return
        described = (baseline, digest, self.stable[2], by_split)
        if known is None or known.described != described:
            known = self.pairs[version] = Pair(described)
        known.newest_ns, known.seen = max(known.newest_ns, row[0]), known.seen + 1
        known.mine.append(row)
        known.mine = drawn(known.mine) if len(known.mine) >= 2 * LIMIT else known.mine

    def beside(self, version: str, pair: Pair) -> tuple[list[Row], list[Column]]:
        mine = sorted(drawn(pair.mine), key=key)
        theirs = drawn([row for row in pair.theirs if mine and mine[0][0] <= row[0] <= mine[-1][0]])
        of_theirs = {(c.role, c.name, c.kind): c for c in self.references[pair.described[0]].columns}
        columns = []
        for own in self.references[version].columns:
            other = of_theirs.get((own.role, own.name, own.kind))
            if other is not None:
                found = column(own, mine)
                expected = expected_of(own, other) if own.role == "output" else None
                columns.append(replace(found, reference=column(other, theirs).current, expected=expected))
        return mine, columns

    def check(self, found: DriftDocument) -> None:
        """Compare the monitor's document with all this."""
        assert [version.version for version in found.versions] == sorted(self.versions)
        for told in found.versions:
            known = self.versions[told.version]
            rows = sorted(known.rows, key=key)[-LIMIT:]
            if self.window_ns:
                rows = [row for row in rows if row[0] >= rows[-1][0] - self.window_ns]
            columns = [column(described, rows) for described in self.references[told.version].columns]
            drifts = compare(columns, RULES)
            assert told.digest == known.digest
            assert (told.rows_total, told.late_rows) == (known.total, known.late)
            assert (told.window_rows, told.window_from_ns, told.window_to_ns) == (len(rows), rows[0][0], rows[-1][0])
            figures = [replace(drift, measures=measure(of)) for drift, of in zip(drifts, columns, strict=True)]
            assert plain(told.columns) == plain(figures)
            assert (told.status, told.reason) == status_of(drifts)
            assert told.outside == outside_of(columns, [row[1] for row in rows])
            assert told.timeline == timeline(known.history[-32:])
            assert (list(told.alarms), list(told.quiet)) == alarms(known.history[-32:], ALARM)
            self.check_beside(told)

    def check_beside(self, told: Any) -> None:
        pair = self.pairs.get(told.version)
        if pair is None or self.stable[1] != pair.described[0]:
            assert told.beside is None
            return
        rows, columns = self.beside(told.version, pair)
        assert told.beside.baseline == pair.described[0]
        assert (told.beside.window_rows, told.beside.baseline_rows) == (len(rows), len(columns[0].reference))
        assert plain(told.beside.columns) == plain(compare(columns, RULES))
        assert (list(told.beside.alarms), list(told.beside.quiet)) == alarms(pair.history, ALARM)


def plain(found: Any) -> Any:
    """As the document says it."""
    return json.loads(orjson.dumps(found))


def expected_of(mine: ReferenceColumn, theirs: ReferenceColumn) -> Expected:
    sides = theirs.values, mine.values
    of_numbers = mine.kind == "numeric"
    effect = ks(*sides)[0] if of_numbers else cramers_v(count_table(*(side.tolist() for side in sides)))
    return Expected(effect, len(sides[0]), len(sides[1]))
