"""What the judge is told: how outputs, keys and bad ends are counted, and where the counting stops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flags.compile import Route, compile_route
from gateway.flags.document import parse
from gateway.serving import sketch
from gateway.serving.signals import MAX_BAD_ENDS, MAX_KEYS, Signals, run_bin


def route(revision: int = 1, canary: int = 50) -> Route:
    flag = {
        "state": "ENABLED",
        "variants": {"stable": "1", "canary": "2", "other": "3"},
        "defaultVariant": "stable",
        "metadata": {"revision": revision},
        "targeting": {"fractional": [["canary", canary], ["stable", 100 - canary]]},
    }
    return compile_route("m", parse({"flags": {"m.route": flag}}).flags["m.route"])


def told(signals: Signals, variant: str = "canary") -> dict[str, Any]:
    (found,) = [arm for arm in signals.to_json() if arm["variant"] == variant]
    return found


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_lies_between_its_bin_and_the_next(value: float) -> None:
    name = sketch.float_bin(value)
    if value == 0:
        assert name == "0"
        return
    assert name[0] == ("p" if value > 0 else "m")
    index = int(name[1:])
    assert index * math.log(1.2) <= math.log(abs(value)) + 1e-9
    assert math.log(abs(value)) < (index + 1) * math.log(1.2) + 1e-9


def test_outputs_are_counted_by_class_or_bin_and_by_column() -> None:
    counts: dict[str, int] = {}
    sketch.add(counts, np.array([[0.0, 1.0], [math.nan, math.inf], [-1.3, -math.inf]], np.float32))
    assert counts == {"0:0": 1, "1:p0": 1, "0:nan": 1, "1:inf": 1, "0:m1": 1, "1:-inf": 1}
    for array, wanted in (
        (np.array([1, 2, 1]), {"1": 2, "2": 1}),
        (np.array([True, False]), {"true": 1, "false": 1}),
        (np.array([b"red", b"\xff"], object), {"red": 1, "�": 1}),
        (np.arange(100), {**{str(n): 1 for n in range(64)}, "other": 36}),
    ):
        counts = {}
        sketch.add(counts, array)
        assert counts == wanted
    counts = {}
    sketch.add(counts, np.ones((2, 40)))
    assert counts == {f"{column}:p0": 2 for column in range(16)}


@given(st.floats(1e-6, 100.0))
def test_a_run_lies_between_its_bin_and_the_next(run_s: float) -> None:
    place = run_bin(run_s)
    assert 1e-6 * 1.1**place <= run_s * (1 + 1e-9)
    assert run_s < 1e-6 * 1.1 ** (place + 1) * (1 + 1e-9)
    assert run_bin(0.0) < 0


def test_only_what_a_split_could_give_now_is_counted() -> None:
    signals = Signals()
    assert set(signals.arms(route())) == {"canary", "stable"}
    assert signals.arms(route(2, canary=0)) == {}
    assert signals.arms(route(3, canary=100)) == {}
    assert {arm["revision"] for arm in signals.to_json()} == {1}


def test_a_key_counts_once_in_an_epoch_and_a_request_without_one_each_time() -> None:
    signals = Signals()
    arms = signals.arms(route())
    for key in ("a", "b", "a", None, None):
        arms["canary"].saw(key)
    assert told(signals)["keys"] == 4
    again = signals.arms(route())
    again["canary"].saw("a")
    assert told(signals)["keys"] == 4
    signals.arms(route(2))["canary"].saw("a")
    assert [arm["keys"] for arm in signals.to_json() if arm["variant"] == "canary"] == [4, 1]


def test_when_no_more_keys_can_be_told_apart_no_arm_counts_on() -> None:
    signals = Signals()
    arms = signals.arms(route())
    for number in range(MAX_KEYS):
        arms["stable" if number % 4 else "canary"].saw(str(number))
    for key in ("one more", None):
        arms["stable"].saw(key)
        arms["canary"].saw(key)
    assert told(signals)["keys"] == MAX_KEYS // 4
    assert told(signals, "stable")["keys"] == MAX_KEYS - MAX_KEYS // 4


def test_a_key_has_one_bad_end_of_a_kind_in_an_epoch() -> None:
    signals = Signals()
    arm = signals.arms(route())["canary"]
    for _ in range(3):
        arm.ended("errors", "a")
        arm.ended("errors", None)
        arm.ended("invalid", "a")
    assert told(signals) | {"errors": 4, "invalid": 1} == told(signals)
    for number in range(MAX_BAD_ENDS):
        arm.ended("errors", str(number))
    before = told(signals)["errors"]
    arm.ended("errors", None)
    assert told(signals)["errors"] == before
    signals.arms(route(2))["canary"].ended("errors", "a")
    assert [each["errors"] for each in signals.to_json() if each["variant"] == "canary"] == [before, 1]


def test_the_last_eight_epochs_are_kept() -> None:
    signals = Signals()
    for revision in range(1, 12):
        signals.arms(route(revision))
    assert sorted({arm["revision"] for arm in signals.to_json()}) == list(range(4, 12))


def test_a_revision_that_a_restored_store_gives_a_second_time_is_an_epoch_of_its_own() -> None:
    signals = Signals()
    signals.arms(route(5))["canary"].saw("a")
    signals.arms(route(6))
    other = {"stable": "1", "canary": "3"}
    again = signals.arms(replace(route(5), split=other))
    again["canary"].saw("a")
    assert [arm["revision"] for arm in signals.to_json() if arm["variant"] == "canary"] == [6, 5]
    newest = signals.to_json()[-2:]
    assert {arm["variant"]: arm["version"] for arm in newest} == other
    assert {arm["variant"]: arm["keys"] for arm in newest} == {"stable": 0, "canary": 1}
    assert signals.arms(replace(route(5), split=other)) is again  # as it is in force


def test_nothing_is_told_of_a_model_that_the_flags_do_not_name_any_more() -> None:
    signals = Signals()
    signals.arms(route(5))
    signals.forget("m")
    signals.forget("n")
    assert signals.to_json() == []


def test_one_run_per_flush_is_looked_at_and_sixty_four_of_its_rows() -> None:
    signals = Signals()
    arm = signals.arms(route())["canary"]
    wanted = [arm.wants_outputs]
    arm.offer({"y": np.ones((100, 1)), "label": np.array([7] * 100)}, range(100))
    wanted.append(arm.wants_outputs)
    signals.flush()
    wanted.append(arm.wants_outputs)
    assert wanted == [True, False, True]
    assert told(signals)["outputs"] == {"y": {"p0": 64}, "label": {"7": 64}}
    signals.flush()
    assert told(signals)["outputs"]["y"] == {"p0": 64}
    arm.offer({"y": np.ones((3, 1))}, [0, 5])  # an array of another size than it should be
    signals.flush()
    assert told(signals)["outputs"]["y"] == {"p0": 64}


@pytest.mark.parametrize("requests", [1, 5])
def test_run_times_are_counted_per_request(requests: int) -> None:
    signals = Signals()
    arm = signals.arms(route())["stable"]
    arm.answered(requests, 100e-6)
    arm.answered(1, None)
    assert told(signals, "stable")["run_s"] == {str(run_bin(100e-6)): requests}, "they lag behind the requests"
    signals.flush()
    assert told(signals, "stable")["run_s"] == {str(run_bin(100e-6)): requests}
    assert told(signals, "stable")["eligible"] == requests + 1
