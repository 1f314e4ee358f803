"""Pairs of answers to one input: how often the label changed, how far the scores moved; sums that can be merged.

Numpy and numbers only: workers compare and sum, control merges the sums of all workers and reads the quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gateway.tensors import FLOATS, Array, Signature, Tensors, TensorSpec

Kind = Literal["label", "score", "probabilities"]

# Quantiles of a sketch are right within this share of their value.
RELATIVE_ERROR = 0.025
_LOG_BASE = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
# Smaller changes count as none, larger ones as this; so a sketch has at most 1,106 bins.
SMALLEST, LARGEST = 1e-12, 1e12
_LAST_BIN = math.ceil(math.log(LARGEST) / _LOG_BASE)
MAX_OUTPUTS = 16


class ChangeSketch:
    """A histogram of changes, numbers from 0 on, whose bins grow with the change: DDSketch (arXiv 1908.10693).

    Sketches of parts merge to the sketch of the whole. bins: by index i, the changes above base**(i-1) up to base**i.
    """

    __slots__ = ("bins", "largest", "none")

    def __init__(self) -> None:
        self.none = 0  # changes below SMALLEST
        self.bins: dict[int, int] = {}
        self.largest = 0.0

    def add(self, changes: Array) -> None:
        """Count *changes*, finite float64 [n] from 0 on."""
        if not changes.size:
            return
        self.largest = max(self.largest, float(changes.max()))
        seen = changes[changes >= SMALLEST]
        self.none += changes.size - seen.size
        indices = np.ceil(np.log(np.minimum(seen, LARGEST)) / _LOG_BASE).astype(np.int64)
        for index, count in zip(*(part.tolist() for part in np.unique(indices, return_counts=True)), strict=True):
            self.bins[index] = self.bins.get(index, 0) + count

    @property
    def count(self) -> int:
        return self.none + sum(self.bins.values())

    def quantile(self, q: float) -> float | None:
        """The smallest change that a share *q* (0 < q <= 1) of all do not exceed, within RELATIVE_ERROR; None of none.

        A change below SMALLEST is told as 0, one above LARGEST as about that.
        """
        rank = max(1, math.ceil(q * self.count - 1e-9)) - self.none  # 0.07 * 100 is above 7
        if not self.count:
            return None
        if rank <= 0:
            return 0.0
        for index in sorted(self.bins):
            rank -= self.bins[index]
            if rank <= 0:
                break
        middle = 2 * math.exp(index * _LOG_BASE) / (1 + math.exp(_LOG_BASE))
        return min(middle, self.largest)

    def merge(self, other: ChangeSketch) -> None:
        self.none += other.none
        self.largest = max(self.largest, other.largest)
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count


@dataclass(slots=True)
class OutputSums:
    """What became of one output. rows: compared ones. flips: rows with another label (of probabilities: another class
    is the likeliest). changes: per row of a float output, the largest |difference| of its values. size_sum: over all
    rows, the largest |value| that was answered, to tell what a change is large against.
    """

    kind: Kind
    rows: int = 0
    flips: int = 0
    size_sum: float = 0.0
    changes: ChangeSketch = field(default_factory=ChangeSketch)

    def merge(self, other: OutputSums) -> None:
        self.rows += other.rows
        self.flips += other.flips
        self.size_sum += other.size_sum
        self.changes.merge(other.changes)


@dataclass(slots=True)
class PairSums:
    """All that is known of the copies that one version ran of what another had answered.

    copies: requests run by both whose outputs could be compared, of *rows* rows. base_invalid: rows left out because
    only the answer that went out was not finite. failed, dropped: requests by reason. timed: batches that both have run
    one right after the other to compare what they cost: base_s and shadow_s seconds in all.
    """

    copies: int = 0
    rows: int = 0
    base_invalid: int = 0
    timed: int = 0
    base_s: float = 0.0
    shadow_s: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, OutputSums] = field(default_factory=dict)

    def merge(self, other: PairSums) -> None:
        """Add *other* to this."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.failed, other.failed), (self.dropped, other.dropped)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count
        for name, sums in other.outputs.items():
            if name not in self.outputs:
                self.outputs[name] = OutputSums(sums.kind)
            self.outputs[name].merge(sums)

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "failed": dict(self.failed),
            "dropped": dict(self.dropped),
            "outputs": {name: _plain_output(sums) for name, sums in self.outputs.items()},
        }


_NUMBERS = ("copies", "rows", "base_invalid", "timed", "base_s", "shadow_s")


def sums_from_json(plain: Mapping[str, Any]) -> PairSums:
    """The inverse of PairSums.to_json. Raises KeyError, TypeError, ValueError, AttributeError on something else."""
    sums = PairSums(
        failed={str(reason): int(count) for reason, count in plain["failed"].items()},
        dropped={str(reason): int(count) for reason, count in plain["dropped"].items()},
        outputs={name: _read_output(output) for name, output in plain["outputs"].items()},
    )
    for name in _NUMBERS:
        setattr(sums, name, _number(plain[name]))
    return sums


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _plain_output(sums: OutputSums) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": sums.kind, "rows": sums.rows, "flips": sums.flips}
    if sums.kind != "label":
        bins = {str(index): count for index, count in sums.changes.bins.items()}
        plain |= {"size_sum": sums.size_sum, "none": sums.changes.none, "bins": bins, "largest": sums.changes.largest}
    return plain


def _read_output(plain: Mapping[str, Any]) -> OutputSums:
    sums = OutputSums(plain["kind"], _number(plain["rows"]), _number(plain["flips"]))
    if sums.kind not in ("label", "score", "probabilities"):
        raise ValueError(f"{sums.kind!r} is no kind of output")
    if sums.kind != "label":
        sums.size_sum = _number(plain["size_sum"])
        sums.changes.none, sums.changes.largest = _number(plain["none"]), _number(plain["largest"])
        sums.changes.bins = {int(index): _number(count) for index, count in plain["bins"].items()}
    return sums


# -- which versions and outputs can be compared ---------------------------------------------------------


def inputs_differ(base: Signature, shadow: Signature) -> str:
    """Why *shadow* cannot run what *base* was asked, in words; empty if it can."""
    if base.batchable != shadow.batchable:
        return "one of them takes rows in batches and the other does not"
    wanted, given = {spec.name: spec for spec in shadow.inputs}, {spec.name: spec for spec in base.inputs}
    if wanted.keys() != given.keys():
        return f"it takes {', '.join(sorted(wanted))}, and requests bring {', '.join(sorted(given))}"
    for name, spec in wanted.items():
        if spec.datatype != given[name].datatype or not _takes(spec, given[name]):
            return (
                f"its input {name!r} is {spec.datatype} {list(spec.shape)}, and requests bring "
                f"{given[name].datatype} {list(given[name].shape)}"
            )
    return ""


def _takes(wanted: TensorSpec, given: TensorSpec) -> bool:
    """Whether a tensor of one shape may be of the other; where either leaves a size open, a run will tell."""
    return len(wanted.shape) == len(given.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(wanted.shape, given.shape, strict=True)
    )


def comparable(base: Signature, shadow: Signature) -> dict[str, Kind]:
    """How each output that both have is compared; those of different types, and more than MAX_OUTPUTS, are left out."""
    kinds: dict[str, Kind] = {}
    for spec in base.outputs:
        other = shadow.output(spec.name)
        if other is None or _is_text(spec) != _is_text(other) or len(kinds) >= MAX_OUTPUTS:
            continue
        if (spec.datatype in FLOATS) != (other.datatype in FLOATS):
            continue
        if spec.datatype not in FLOATS:
            kinds[spec.name] = "label"
        else:
            kinds[spec.name] = "probabilities" if "probabilities" in (spec.role, other.role) else "score"
    return kinds


def _is_text(spec: TensorSpec) -> bool:
    return spec.datatype == "BYTES"


# -- comparing --------------------------------------------------------------------------------------------


def compare(base: Tensors, shadow: Tensors, rows_of: Sequence[int], kinds: Mapping[str, Kind]) -> PairSums:
    """Compare the outputs of two versions for the same requests.

    base, shadow: arrays whose values divide evenly into the rows of all requests, those of each request one after the
    other; rows_of: how many rows (at least one) each has. A request for which *shadow* gives another shape, or NaN or
    an infinity where *base* does not give the same, is counted as failed by "invalid" and enters nothing else.
    """
    rows = np.array(rows_of)
    total = int(rows.sum())
    is_valid, is_base_valid = np.ones(total, bool), np.ones(total, bool)
    flipped: dict[str, Array] = {}
    moved: dict[str, tuple[Array, Array]] = {}
    for name, kind in kinds.items():
        old, new = _by_rows(base.get(name), total), _by_rows(shadow.get(name), total)
        if old is None or new is None or old.shape != new.shape:
            is_valid[:] = False
            continue
        if kind == "label":
            flipped[name] = (old != new).any(axis=1)
            continue
        old, new = old.astype(np.float64), new.astype(np.float64)
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        is_valid &= (same | np.isfinite(new)).all(axis=1)
        is_base_valid &= (same | np.isfinite(old)).all(axis=1)
        moved[name] = (_changes(old, new, same), _sizes(old))
        if kind == "probabilities" and old.shape[1] > 1:
            flipped[name] = old.argmax(axis=1) != new.argmax(axis=1)
    is_whole = np.logical_and.reduceat(is_valid, np.concatenate(([0], np.cumsum(rows)[:-1])))
    kept = np.repeat(is_whole, rows) & is_base_valid
    sums = PairSums(copies=int(is_whole.sum()), rows=int(kept.sum()))
    sums.base_invalid = int(rows[is_whole].sum()) - sums.rows
    if sums.copies < len(rows):
        sums.failed["invalid"] = len(rows) - sums.copies
    for name, kind in kinds.items():
        output = sums.outputs[name] = OutputSums(kind, sums.rows)
        if name in flipped:
            output.flips = int(flipped[name][kept].sum())
        if name in moved:
            output.changes.add(moved[name][0][kept])
            output.size_sum = float(moved[name][1][kept].sum())
    return sums


def _by_rows(array: Array | None, rows: int) -> Array | None:
    """The values as [rows, values per row]; None if they do not divide so."""
    if array is None or array.size % rows or not array.size:
        return None
    return array.reshape(rows, -1)


def _changes(old: Array, new: Array, same: Array) -> Array:
    """Per row, the largest |difference|; values that are not finite count as no change here."""
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.where(same, 0.0, np.abs(new - old))
    largest: Array = np.nan_to_num(differences, nan=0.0, posinf=np.finfo(np.float64).max).max(axis=1)
    return largest


def _sizes(old: Array) -> Array:
    """Per row, the largest |value|; at most so much that no sum becomes infinite, which JSON cannot say."""
    sizes: Array = np.where(np.isfinite(old), np.minimum(np.abs(old), 1e100), 0.0).max(axis=1)
    return sizes
