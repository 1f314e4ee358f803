"""Fewer trees: an ensemble cut after its first rounds, and what that costs in quality and saves in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from converters.original import Original
from converters.quantize import Candidate, Decision, Subject, judge, settled, undisputed
from converters.variants import optimized
from converters.write import to_onnx
from gateway.errors import ConversionRefused, InvalidInput

MaxTrees = int | Literal["auto"]
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def prune(
    original: Original, subject: Subject, most: MaxTrees, random: np.random.Generator, *, held_out: bool
) -> tuple[Decision, bytes]:
    """Choose how many of its first rounds the ensemble keeps. Returns the decision and the ONNX bytes.

    most: that many, whatever it costs; or ``auto``, the fewest with which the metric drops by no more than the gate
    allows, which only rows with true labels can tell that the model has not seen. Raises InvalidInput, or
    ConversionRefused for a model that has no trees to leave out.
    """
    ensemble = original.ensemble
    if ensemble is None:
        raise ConversionRefused(f"--max-trees: the trees of {original.description} are not read one by one")
    rounds = ensemble.rounds
    if most == "auto" and (subject.truth is None or not held_out):
        raise InvalidInput("max-trees", "auto", "--target and --held-out with it: seen rows flatter the last trees")
    wanted = sorted({max(1, round(rounds * share)) for share in _SHARES}) if most == "auto" else [int(most)]
    wanted = [each for each in wanted if each < rounds]
    if not wanted:
        return undisputed(subject, f"it has no more than {rounds} rounds of trees"), subject.content
    contents = {f"all {rounds} rounds": subject.content}
    for each in wanted:
        contents[f"first {each} rounds"] = optimized(to_onnx(original.with_first(each), subject.signature))
    judged = [_by_metric_alone(subject, each, named=most != "auto") for each in judge(subject, contents, random)]
    kept = [candidate for candidate in judged if candidate.verdict == "kept"]
    best = kept[0] if kept else judged[0]
    reason = best.reason if kept else "fewer lose too much"
    return settled(subject, judged, [], best, reason, 0), contents[best.method]


def _by_metric_alone(subject: Subject, candidate: Candidate, *, named: bool) -> Candidate:
    """The verdict on a cut ensemble: it is another model, of which labels differ and the metric counts."""
    if candidate.verdict == "baseline":
        return candidate
    drop = candidate.metric_drop_points
    lost = "" if drop is None else f"the metric drops by {max(drop, 0.0):.2f} points"
    if drop is not None and drop > subject.gate.max_metric_drop_points and not named:
        return replace(
            candidate, verdict="refused", reason=f"{lost}, at most {subject.gate.max_metric_drop_points} may"
        )
    asked = "asked for with --max-trees" if named else "the fewest within the gate"
    return replace(candidate, verdict="kept", reason="; ".join(filter(None, (asked, lost))))
