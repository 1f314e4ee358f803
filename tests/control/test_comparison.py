"""The A/B report says what can and what cannot be concluded, as a document and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from gateway.control.comparison import lines, report
from gateway.control.judge import Judge
from gateway.control.window import Arm, Window, run_bin

EQUAL = {"canary": 50, "stable": 50}


def arm(random: np.random.Generator, n: int, errors: float, run_s: float, shift: int) -> Arm:
    times, counts = np.unique([run_bin(run_s * x) for x in random.lognormal(0, 0.2, n)], return_counts=True)
    zeros = int(random.binomial(20, 0.4 + 0.2 * shift))
    return Arm(
        eligible=n,
        errors=int(random.binomial(n, errors)),
        run_s={str(bin_): int(count) for bin_, count in zip(times, counts, strict=True)},
        keys={"a": n},
        outputs={"label": {"0": zeros, "1": 20 - zeros}, "score": {f"p{-5 + shift}": 10, f"p{-4 + shift}": 10}},
    )


def judge_windows(windows: Iterable[Window]) -> Judge:
    judge = Judge()
    for window in windows:
        judge.observe(window)
    return judge


def compared(errors: float = 0.02, run_s: float = 0.005, shift: int = 0, windows: int = 400) -> Judge:
    random = np.random.default_rng(1)
    pairs = (
        Window(arm(random, 100, errors, run_s, shift), arm(random, 100, 0.02, 0.005, 0), "1", EQUAL)
        for _ in range(windows)
    )
    return judge_windows(pairs)


def test_what_differs_is_named_with_intervals_that_hold_it() -> None:
    document = report(compared(errors=0.06, run_s=0.02, shift=1))
    rates = {rate["metric"]: rate for rate in document["rates"]}
    errors = rates["errors"]
    assert errors["verdict"] == "higher"
    assert 0 < errors["difference"]["low"] < 0.04 < errors["difference"]["high"]
    assert 1 < errors["ratio"]["low"] < 3 < errors["ratio"]["high"]
    run_s = document["run_s"]
    assert run_s["verdict"] == "higher"
    assert run_s["difference"]["low"] < 0.0153 < run_s["difference"]["high"]
    assert document["outputs"]["score"]["mean"]["verdict"] == "higher"
    of_label = {of["class"]: of for of in document["outputs"]["label"]["classes"]}
    assert of_label["0"]["difference"]["low"] < 0.2 < of_label["0"]["difference"]["high"]
    exposure = {"canary": 40_000, "stable": 40_000, "canary_share": 0.5, "canary_fallbacks": 0}
    assert document["exposure"] == exposure
    assert document["srm"]["observed"] == {"canary": 0.5, "stable": 0.5}
    assert "higher in the canary: errors, slow, run time" in document["conclusion"]
    assert document["alpha_per_metric"] * document["metrics"] == document["alpha"] == 0.05


def test_what_does_not_differ_is_open_and_the_report_says_what_is_ruled_out() -> None:
    document = report(compared())
    assert {rate["verdict"] for rate in document["rates"]} == {"open"}
    assert "No difference is shown for errors" in document["conclusion"]
    assert "that does not mean that there is none" in document["conclusion"]
    assert "Ruled out is a rise of errors by more than" in document["conclusion"]


def test_fewer_errors_are_lower() -> None:
    document = report(compared(errors=0.002))
    assert document["rates"][0]["verdict"] == "lower"
    assert "lower in the canary: errors" in document["conclusion"]


def test_a_wrong_split_is_said_first_and_nothing_else() -> None:
    judge = compared(windows=50)
    judge.observe(Window(Arm(keys={"a": 900}), Arm(keys={"a": 100}), "2", EQUAL))
    document = report(judge)
    assert document["srm"]["mismatch"]
    assert document["conclusion"].startswith("The split is not as configured")
    assert any("MISMATCH" in line for line in lines(document))


def test_fallbacks_are_told_apart_from_what_both_variants_can_have() -> None:
    pair = Window(Arm(eligible=100, errors=7, fallbacks=7), Arm(eligible=100, errors=1))
    document = report(judge_windows([pair]))
    assert [rate["metric"] for rate in document["rates"]] == ["errors", "timeouts", "invalid"]
    assert "answered by stable instead of the canary: 7" in lines(document)


def test_little_is_said_of_little_and_in_numbers_that_can_be_read() -> None:
    text = lines(report(compared(windows=1)))
    assert not [line for line in text if "e+" in line]
    assert any(
        line.startswith("share of label = 0") and line.endswith("-100 to +100 points: undecided") for line in text
    )
    few = judge_windows([Window(Arm(eligible=2, keys={"a": 2}), Arm(eligible=2, keys={"a": 2}), "1", EQUAL)])
    assert "Ruled out" not in lines(report(few))[-1]


def test_nothing_can_be_said_of_nothing() -> None:
    document = report(Judge())
    assert document["conclusion"].startswith("Nothing can be concluded")
    assert lines(document) == ["requests: canary 0, stable 0", document["conclusion"]]


def test_the_document_is_json_and_the_lines_are_short_enough_to_read() -> None:
    judge = compared(windows=30)
    document = report(judge)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    text = lines(document)
    assert text[0] == "requests: canary 3000, stable 3000 (50 % on the canary)"
    assert any(line.startswith("errors: canary ") and "ratio" in line for line in text)
    assert any(line.startswith("run time: canary ") and " ms" in line for line in text)
    assert any(line.startswith("share of label = ") for line in text)
    assert any(line.startswith("mean of score: ") for line in text)
    resumed = Judge.from_json(json.loads(json.dumps(judge.to_json())))
    assert report(resumed) == document
