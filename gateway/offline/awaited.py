"""Which rows of the sample log wait for a label, and what is kept of each until it comes.

A block of the log is taken as the columns that the monitor has made of it, or as lines where there are none.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Mapping, MutableMapping
from itertools import repeat
from pathlib import Path
from typing import Any

import orjson

from gateway.flags.compile import SPLIT
from gateway.offline.chunks import Chunk, Taken
from gateway.offline.groups import Group
from gateway.offline.join import Join, Waiting
from gateway.offline.targets import Targets, text_of
from gateway.samples.labels import FOLDER
from gateway.samples.record import RANDOM
from gateway.samples.record import SCHEMA as SAMPLE_SCHEMA

_MISSING = "(missing)"
_RAN = ("miss", "bypass")
# What a row says of the request and the route that it came by, and of nothing that the model saw or said.
_ROUTE = ("rows", "variant", "reason", "cache", "flag_revision")


def since_ns(log: Path, wait_s: float) -> int | None:
    """From when on rows of the sample log *log* may have labels; None while nobody has sent one."""
    days = sorted(path.name for path in (log / FOLDER).glob("date=*"))
    if not days:
        return None
    begin_s = calendar.timegm(time.strptime(days[0], "date=%Y-%m-%d"))
    return int((begin_s - wait_s) * 1e9)


class Awaited:
    """Puts rows into a join. Used by one thread.

    groups: of each variant that a row names, by model, version and variant; a new one gets one. since_ns: rows before
    this time cannot have labels. slice_feature: a feature whose value is kept of each row, "" for none.
    """

    def __init__(
        self,
        targets: Targets,
        join: Join,
        groups: MutableMapping[tuple[str, str, str], Group],
        *,
        since_ns: int,
        slice_feature: str,
    ) -> None:
        self._targets = targets
        self._join = join
        self._groups = groups
        self._since_ns = since_ns
        self._slice_feature = slice_feature

    def take_block(self, block: bytes, taken: Taken) -> None:
        """Have the rows of some whole lines wait. taken: the same lines, as far as their columns are known."""
        for record in taken.records:
            self._take(record)
        if not taken.records and not all(map(self._take_columns, taken.chunks)):
            self.take_lines(block)  # rows that wait already are not added again

    def take_lines(self, block: bytes) -> None:
        """The same, of lines that nobody has read yet."""
        for line in block.splitlines():
            try:
                record = orjson.loads(line)
                if record["schema"] == SAMPLE_SCHEMA and record["sample_reason"] == RANDOM:
                    self._take(record)
            except (ValueError, KeyError, TypeError):
                continue

    def _take(self, record: Mapping[str, Any]) -> None:
        """Have one random sample wait for its label; what is none is passed over."""
        try:
            ts_ns, identity, row, rows = record["ts_ns"], record["prediction_id"], record["row"], record["rows"]
            if not (isinstance(ts_ns, int) and isinstance(identity, str)) or ts_ns < self._since_ns:
                return
            model, version, digest = record["model"], record["version"], record["digest"]
            target = self._targets.find(model, version, digest)
            self._meet(model, version, record["variant"], digest)
            if isinstance(target, str):
                return
            predicted, scores = target.predicted(record["outputs"])
            # As for the other signals: what a split decided and the model ran; of each request one row, since the rows
            # of one request are right and wrong together.
            is_judged = record["reason"] == SPLIT and record["cache"] in _RAN and row == 0
            revision = record["flag_revision"] if is_judged else -1
            slice_ = self._slice(record["inputs"])
            plain = (model, version, record["variant"], revision, digest, predicted, scores, slice_)
            self._join.add_row(Waiting(ts_ns, identity, row, rows, plain))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return

    def _take_columns(self, chunk: Chunk) -> bool:
        """`_take` for all rows of a chunk; whether its columns have all that it needs: if not, nothing is done."""
        model, version, digest = chunk.model, chunk.version, chunk.digest
        try:
            target = self._targets.find(model, version, digest)
        except ValueError:
            return True
        outputs = () if isinstance(target, str) else target.columns
        said = [chunk.columns.plain(name) for name in (*_ROUTE, *(f"outputs.{name}" for name in outputs))]
        known = [column for column in said if column is not None]
        sliced = chunk.columns.plain(f"inputs.{self._slice_feature}") if self._slice_feature else None
        # What is null may not be there at all, which lines tell apart.
        if len(known) < len(said) or any(None in column for column in known[: len(_ROUTE)]):
            return False
        if self._slice_feature and (sliced is None or None in sliced):
            return False
        slices: Iterable[str] = repeat("") if sliced is None else map(text_of, sliced)
        rows, variants, reasons, caches, revisions = known[: len(_ROUTE)]
        times = chunk.ts_ns.tolist()
        for variant in {v for v, ts_ns in zip(variants, times, strict=True) if ts_ns >= self._since_ns}:
            self._meet(model, version, variant, digest)
        if isinstance(target, str):
            return True
        judged = [
            revision if reason == SPLIT and cache in _RAN and row == 0 else -1
            for revision, reason, cache, row in zip(revisions, reasons, caches, chunk.row.tolist(), strict=True)
        ]
        add_row, since_ns = self._join.add_row, self._since_ns
        for ts_ns, identity, row, of, variant, revision, answer, slice_ in zip(
            times, chunk.ids.tolist(), chunk.row.tolist(), rows, variants, judged,
            target.all_predicted(known[len(_ROUTE) :]), slices, strict=False,
        ):  # fmt: skip
            if ts_ns >= since_ns and answer is not None:
                plain = (model, version, variant, revision, digest, *answer, slice_)
                add_row(Waiting(ts_ns, identity, row, of, plain))
        return True

    def _meet(self, model: str, version: str, variant: str, digest: str) -> None:
        key = (model, version, variant)
        if key not in self._groups:
            self._groups[key] = Group(digest)

    def _slice(self, inputs: Mapping[str, Any]) -> str:
        name = self._slice_feature
        if not name or name not in inputs:
            return ""
        return _MISSING if inputs[name] is None else text_of(inputs[name])
