"""What may stand in a feature: whether a value may be missing, and whether a text may be one never seen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.original import Answer, Original
from converters.rows import spread, take, to_tensors
from converters.verify import OnnxModel, compare, tolerance_for
from gateway.errors import ConversionRefused
from gateway.tensors import Feature, Signature

UNSEEN = "a text that was never seen"
# Rows in which each feature is tried, unless there are so many features that the trial would take long.
_ROWS_PER_FEATURE = 20
_MAX_CELLS = 2_000_000
_MAX_CATEGORIES = 10_000


@dataclass(frozen=True, slots=True)
class Trial:
    """For each tried feature: did the original take the value, and did ONNX then answer the same?"""

    tried: tuple[str, ...]
    taken: frozenset[str]
    agreed: frozenset[str]

    def plain(self) -> Mapping[str, Any]:
        return {
            "tried": len(self.tried),
            "allowed": [name for name in self.tried if name in self.agreed],
            "onnx_differs": [name for name in self.tried if name in self.taken - self.agreed],
        }


def try_values(
    original: Original, model: OnnxModel, signature: Signature, frame: Any, known: Mapping[str, tuple[str, ...]]
) -> tuple[Signature, Mapping[str, Any]]:
    """The signature with ``missing_allowed`` and ``categories`` filled in by trial, and a report of the trials.

    A value is allowed only if the original takes it and ONNX answers the same; else the gateway has to refuse it.
    categories stay None where any text may stand. known: the texts that the original's encoders know.
    """
    numbers = [feature.name for feature in signature.features if feature.kind == "numeric"]
    texts = [feature.name for feature in signature.features if feature.kind == "categorical"]
    trials = {
        # Where ONNX differs for one number, it agrees for others by luck: NaN takes another path through the model.
        "missing_numbers": _all_or_none(_try(original, model, signature, frame, numbers, np.nan)),
        "missing_texts": _try(original, model, signature, frame, texts, np.nan),
        "unseen_texts": _try(original, model, signature, frame, texts, UNSEEN),
    }
    missing_allowed = trials["missing_numbers"].agreed | trials["missing_texts"].agreed

    def settle(feature: Feature) -> Feature:
        categories = None
        if feature.name in texts and feature.name not in trials["unseen_texts"].agreed:
            seen = {str(text) for text in frame[feature.name].dropna().unique()}
            categories = tuple(sorted(seen | set(known.get(feature.name, ())))[:_MAX_CATEGORIES])
        return replace(feature, missing_allowed=feature.name in missing_allowed, categories=categories)

    settled = replace(signature, features=tuple(settle(feature) for feature in signature.features))
    return settled, {name: trial.plain() for name, trial in trials.items()}


def _all_or_none(trial: Trial) -> Trial:
    return trial if trial.agreed == trial.taken else replace(trial, agreed=frozenset())


def _try(original: Original, model: OnnxModel, signature: Signature, frame: Any, names: list[str], value: Any) -> Trial:
    """Put *value* into one feature after the other, then into all that passed at once."""
    taken: set[str] = set()
    agreed: set[str] = set()

    def agreement(groups: list[list[str]]) -> list[bool] | None:
        try:
            return _agreement(original, model, signature, _planted(frame, groups, value), len(groups))
        except ConversionRefused:
            return None

    # All rows at once is fast, and enough for a model that takes the value everywhere.
    at_once = agreement([[name] for name in names]) if names else None
    for index, name in enumerate(names):
        verdict = at_once[index : index + 1] if at_once is not None else agreement([[name]])
        if verdict is not None:
            taken.add(name)
            agreed.update([name] if verdict[0] else [])
    if len(agreed) > 1 and agreement([[name for name in names if name in agreed]]) != [True]:
        agreed.clear()
    return Trial(tuple(names), frozenset(taken), frozenset(agreed))


def _planted(frame: Any, groups: list[list[str]], value: Any) -> Any:
    """For each group of columns, the same few rows of *frame* with *value* in these columns."""
    wanted = min(_ROWS_PER_FEATURE, max(1, _MAX_CELLS // (len(groups) * frame.shape[1])))
    rows = spread(len(frame), wanted)
    planted = frame.iloc[np.tile(rows, len(groups))].reset_index(drop=True)
    for name in {name for group in groups for name in group}:
        column = planted[name]
        # Whole numbers and booleans have no NaN; pandas would refuse it in such a column.
        column = column.astype(np.float64 if column.dtype.kind in "iufb" else object)
        planted[name] = column.mask(np.repeat([name in group for group in groups], len(rows)), value)
    return planted


def _agreement(original: Original, model: OnnxModel, signature: Signature, planted: Any, groups: int) -> list[bool]:
    """For each group of rows, whether ONNX answers as the original. Raises ConversionRefused if the original fails."""
    expected = original.answer(planted)
    tolerance = tolerance_for(expected)
    tensors = to_tensors(planted, signature)
    size = len(planted) // groups
    verdicts: list[bool] = []
    for start in range(0, len(planted), size):
        rows = slice(start, start + size)
        own = Answer(take(expected.outputs, rows), None if expected.margin is None else expected.margin[rows])
        try:
            verdicts.append(compare(own, model.run(take(tensors, rows)), tolerance).agrees)
        except ConversionRefused:
            verdicts.append(False)
    return verdicts
