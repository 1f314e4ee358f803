"""The judge as the controller sees it: windows in, findings and promotions out, state in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.judge import Finding, Judge
from gateway.control.policy import Policy
from gateway.control.window import Arm, Window, run_bin

FAST, SLOW = str(run_bin(0.004)), str(run_bin(0.1))


def pair(random: np.random.Generator, n: int, weight: float, epoch: str, rates: Mapping[str, float]) -> Window:
    """A window of *n* requests; rates of the canary, those not given are stable's."""
    base = {"errors": 0.01, "timeouts": 0.002, "invalid": 0.002, "slow": 0.004, "wrong": 0.1}
    n_c = int(random.binomial(n, weight))
    arms = []
    for size, of in ((n_c, base | dict(rates)), (n - n_c, base)):
        bad = {name: int(random.binomial(size, of[name])) for name in base}
        of_bin = int(random.binomial(min(size, 20), 0.3))
        arms.append(
            Arm(
                eligible=size,
                errors=bad["errors"],
                timeouts=bad["timeouts"],
                invalid=bad["invalid"],
                run_s={FAST: size - bad["slow"], SLOW: bad["slow"]},
                keys={"a": size // 2, "b": size - size // 2},
                outputs={"label": {"0": of_bin, "1": min(size, 20) - of_bin}},
                labelled=size,
                correct=size - bad["wrong"],
            )
        )
    canary, stable = arms
    fallbacks = min(canary.errors + canary.timeouts + canary.invalid, canary.eligible)
    canary = Arm(**{name: getattr(canary, name) for name in Arm.__slots__} | {"fallbacks": fallbacks})
    return Window(canary, stable, epoch, {"canary": weight, "stable": 1 - weight})


def rollout(seed: int, windows: int = 15, n: int = 300, rates: Mapping[str, float] | None = None) -> Iterator[Window]:
    random = np.random.default_rng(seed)
    for epoch, weight in enumerate((0.01, 0.05, 0.2, 0.5)):
        for _ in range(windows):
            yield pair(random, n, weight, str(epoch), rates or {})


def found(judge: Judge) -> dict[str, Finding]:
    return {finding.signal: finding for finding in judge.findings()}


def test_the_family_of_all_signals_stays_within_alpha_over_whole_rollouts() -> None:
    """All signals at once, alpha raised to 10 % so that 80 rollouts can show a fault."""
    alarms = 0
    for seed in range(80):
        judge = Judge(Policy.from_json({"alpha": 0.1, "slow_s": 0.05}))
        for window in rollout(seed, windows=8):
            judge.observe(window)
        alarms += any(finding.tripped for finding in judge.findings() if finding.action == "rollback")
    assert alarms / 80 <= 0.1 + 3 * math.sqrt(0.09 / 80)


@pytest.mark.parametrize(
    ("signal", "rates"),
    [
        ("errors", {"errors": 0.1}),
        ("timeouts", {"timeouts": 0.5}),
        ("invalid", {"invalid": 0.1}),
        ("fallbacks", {"errors": 0.3}),
        ("slow", {"slow": 0.6}),
        ("accuracy", {"wrong": 0.3}),
    ],
)
def test_what_is_wrong_is_found_by_its_name_and_stops_the_promotion(signal: str, rates: dict[str, float]) -> None:
    judge = Judge()
    for window in rollout(1, rates=rates):
        judge.observe(window)
    finding = found(judge)[signal]
    assert finding.tripped
    assert finding.action == "rollback"
    assert finding.e_value >= finding.threshold == judge.policy.threshold(signal)
    assert "canary" in finding.text
    assert not judge.may_promote().ready
    assert signal in judge.may_promote().why


def test_a_healthy_canary_is_promoted_with_the_reason() -> None:
    judge = Judge()
    for window in rollout(2, windows=60, n=400):
        judge.observe(window)
    assert judge.may_promote().ready, judge.may_promote().why
    assert "95 % sure" in judge.may_promote().why
    assert "errors below 1.25 x stable's + 0.5 points" in judge.may_promote().why


def test_no_alarm_is_not_enough_for_a_promotion() -> None:
    judge = Judge(Policy.from_json({"min_requests": 100}))
    assert judge.may_promote().why == "0 of 100 canary requests"
    judge.observe(Window(Arm(eligible=100), Arm(eligible=900)))
    why = judge.may_promote().why
    assert "not shown to be good enough" in why
    assert "errors below" in why
    assert "more requests" not in why or "if it goes on so" in why


def test_a_plan_that_asks_for_no_proof_is_promoted_after_its_requests_if_nothing_stops_it() -> None:
    names = ("errors", "timeouts", "invalid", "fallbacks", "slow")
    policy = Policy.from_json({"signals": {name: {"promote_tolerance": None} for name in names}, "min_requests": 100})
    judge, bad = Judge(policy), Judge(policy)
    judge.observe(Window(Arm(eligible=99), Arm(eligible=891)))
    assert judge.may_promote().why == "99 of 100 canary requests"
    judge.observe(Window(Arm(eligible=1), Arm(eligible=9)))
    assert judge.may_promote().ready
    assert "asks for no proof" in judge.may_promote().why
    bad.observe(Window(Arm(eligible=200, errors=200), Arm(eligible=1800)))
    assert bad.may_promote().why == "stopped by errors"


def test_without_any_bad_event_the_tolerance_decides_how_many_requests_are_needed() -> None:
    """The rule of three: about log(20) / 0.005 = 600 requests, a little more for the guesses."""
    judge = Judge(Policy.from_json({"signals": {"timeouts": None, "fallbacks": None, "invalid": None}}))
    while not judge.may_promote().ready:
        judge.observe(Window(Arm(eligible=10), Arm(eligible=90)))
        assert judge.requests[0] < 2000
    assert 600 <= judge.requests[0] <= 1000


@pytest.mark.parametrize("rate", [0.01125, 0.05])
def test_a_canary_that_is_worse_by_its_tolerance_is_called_good_in_at_most_five_of_a_hundred(rate: float) -> None:
    """Stable fails in 0.5 %, the bound is 1.25 x 0.5 % + 0.5 points = 1.125 %; asked after each of 60 windows."""
    random, wrong = np.random.default_rng(6), 0
    policy = Policy.from_json(
        {"signals": {"timeouts": None, "fallbacks": None, "invalid": None, "slow": None}, "min_requests": 0}
    )
    for _ in range(60):
        judge, ready = Judge(policy), False
        for _ in range(60):
            canary = Arm(eligible=50, errors=int(random.binomial(50, rate)))
            judge.observe(Window(canary, Arm(eligible=200, errors=int(random.binomial(200, 0.005)))))
            ready = ready or judge.may_promote().ready
        wrong += ready
    assert wrong / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_without_stable_traffic_nothing_is_known() -> None:
    judge = Judge()
    judge.observe(Window(Arm(eligible=1000, errors=1000), Arm()))
    assert not any(finding.tripped for finding in judge.findings())
    assert "no traffic on both" in judge.may_promote().why


def test_errors_that_both_variants_have_do_not_look_like_fallbacks_of_the_canary() -> None:
    """Only the canary has something to fall back on; stable's failures are what its fallbacks are compared with."""
    judge = Judge()
    for _ in range(200):
        judge.observe(Window(Arm(eligible=50, errors=1, fallbacks=1), Arm(eligible=950, errors=19)))
    assert not found(judge)["fallbacks"].tripped
    outage = Judge()
    for _ in range(200):  # an outage of half of all requests opens the canary's breaker
        outage.observe(Window(Arm(eligible=50, errors=5, fallbacks=50), Arm(eligible=950, errors=500)))
    assert not found(outage)["fallbacks"].tripped


@pytest.mark.parametrize("heavy_on", ["canary", "stable"])
@pytest.mark.parametrize("counted", ["once", "each"])
def test_a_heavy_sticky_key_makes_no_healthy_canary_look_worse(heavy_on: str, counted: str) -> None:
    """One key has half of the requests. Its bad events are counted once a minute; or, being independent, each."""
    random, alarms = np.random.default_rng(7), 0
    for _ in range(15):
        judge = Judge(Policy.from_json({"alpha": 0.1, "signals": dict.fromkeys(ONLY_ERRORS)}))
        for minute in range(90):
            light, heavy = 3000, 3000
            n_c = int(random.binomial(light, 0.05))
            of_heavy = int(random.binomial(heavy, 0.005))
            of_heavy = min(of_heavy, 1) if counted == "once" else of_heavy
            requests, bad, keys = [n_c, light - n_c], [0, 0], [n_c, light - n_c]
            bad = [int(random.binomial(n, 0.005)) for n in requests]
            arm = ["canary", "stable"].index(heavy_on)
            requests[arm] += heavy
            bad[arm] += of_heavy
            keys[arm] += minute == 0
            arms = [Arm(eligible=n, errors=b, keys={"a": k}) for n, b, k in zip(requests, bad, keys, strict=True)]
            judge.observe(Window(arms[0], arms[1], "1"))
        alarms += found(judge)["errors"].tripped
    assert alarms / 15 <= 0.1 + 3 * math.sqrt(0.09 / 15)


ONLY_ERRORS = ("timeouts", "invalid", "fallbacks", "slow", "accuracy")


def test_what_is_slow_is_fixed_before_the_window_that_it_judges() -> None:
    judge = Judge()
    judge.observe(Window(Arm(eligible=9, run_s={SLOW: 9}), Arm(eligible=100, run_s={FAST: 100})))
    assert judge.slow_s is None
    assert "before 300 runs of stable" in found(judge)["slow"].text
    judge.observe(Window(Arm(eligible=9, run_s={SLOW: 9}), Arm(eligible=1000, run_s={FAST: 10_000})))
    assert judge.slow_s == pytest.approx(0.006, rel=0.1)  # 1.5 x stable's
    assert found(judge)["slow"].text == "slow: nothing to compare yet"
    assert "accuracy" not in found(judge)  # there are no labels
    judge.observe(Window(Arm(eligible=9, run_s={SLOW: 9}), Arm(eligible=1000, run_s={FAST: 10_000})))
    assert "canary 100 % (9 of 9), stable 0 %" in found(judge)["slow"].text
    for _ in range(3):  # stable becomes slow too: the bound stays for this step, and is taken anew for the next
        judge.observe(Window(Arm(eligible=9, run_s={SLOW: 9}), Arm(eligible=1000, run_s={SLOW: 10_000})))
    assert judge.slow_s == pytest.approx(0.006, rel=0.1)
    judge.begin_step()
    assert judge.slow_s == pytest.approx(0.15, rel=0.1)
    judge.begin_step()  # with no runs in the step before, the bound stays
    assert judge.slow_s == pytest.approx(0.15, rel=0.1)


def test_what_was_taken_from_few_runs_is_taken_again_from_more() -> None:
    judge = Judge()
    judge.observe(Window(Arm(), Arm(run_s={FAST: 296, SLOW: 4})))
    assert judge.slow_s == pytest.approx(0.15, rel=0.1)
    judge.observe(Window(Arm(), Arm(run_s={FAST: 300})))
    assert judge.slow_s == pytest.approx(0.006, rel=0.1)


def test_what_is_slow_may_stand_in_the_plan_and_is_never_less_than_the_floor() -> None:
    judge = Judge(Policy.from_json({"slow_s": 0.05}))
    judge.observe(Window(Arm(eligible=9, run_s={SLOW: 9}), Arm(eligible=90, run_s={FAST: 90})))
    assert "canary 100 % (9 of 9)" in found(judge)["slow"].text
    tiny = Judge()
    tiny.observe(Window(Arm(), Arm(eligible=1000, run_s={str(run_bin(5e-5)): 1000})))
    assert tiny.slow_s == pytest.approx(0.001, rel=0.1)


def test_a_wrong_split_pauses_and_may_be_acknowledged() -> None:
    judge = Judge()
    shares = {"canary": 50, "stable": 50}
    judge.observe(Window(Arm(keys={"a": 600}), Arm(keys={"a": 400}), "7", shares))
    finding = found(judge)["srm"]
    assert (finding.tripped, finding.action) == (True, "pause")
    assert "60 % of the keys went to the canary, 50 % were configured" in finding.text
    assert judge.findings()[0].signal == "srm"
    judge.acknowledge("srm")
    assert not found(judge)["srm"].tripped
    with pytest.raises(KeyError):
        judge.acknowledge("humidity")


def test_a_difference_of_the_outputs_counts_only_if_it_is_large_enough_to_matter() -> None:
    small, large = Judge(), Judge()
    for _ in range(400):
        small.observe(Window(Arm(outputs={"y": {"0": 28, "1": 36}}), Arm(outputs={"y": {"0": 350, "1": 290}})))
        large.observe(Window(Arm(outputs={"y": {"0": 15, "1": 49}}), Arm(outputs={"y": {"0": 350, "1": 290}})))
    assert found(small)["outputs"].e_value > found(small)["outputs"].threshold
    assert not found(small)["outputs"].tripped
    assert "too small to matter" in found(small)["outputs"].text
    assert found(large)["outputs"].tripped
    judge = large
    judge.acknowledge("outputs")
    assert not found(judge)["outputs"].tripped


def test_an_alarm_stays_until_it_is_acknowledged() -> None:
    judge = Judge()
    judge.observe(Window(Arm(eligible=100, errors=50), Arm(eligible=900, errors=1)))
    assert found(judge)["errors"].tripped
    for _ in range(300):
        judge.observe(Window(Arm(eligible=100), Arm(eligible=900, errors=50)))
    assert found(judge)["errors"].e_value < found(judge)["errors"].threshold
    assert found(judge)["errors"].tripped
    judge.acknowledge("errors")
    assert not found(judge)["errors"].tripped


def test_what_is_only_to_be_told_stops_no_promotion() -> None:
    for action, stops in (("notify", False), ("pause", True)):
        judge = Judge(Policy.from_json({"signals": {"errors": {"action": action}}}))
        judge.observe(Window(Arm(eligible=100, errors=50), Arm(eligible=900, errors=1)))
        assert found(judge)["errors"].tripped
        assert ("stopped by errors" in judge.may_promote().why) is stops


Count = st.integers(0, 20)
Arms = st.builds(
    Arm,
    eligible=st.integers(60, 100), errors=Count, timeouts=Count, invalid=Count, fallbacks=Count,
    run_s=st.dictionaries(st.sampled_from([FAST, SLOW, "-3", "999"]), st.integers(0, 400), max_size=3),
    keys=st.dictionaries(st.sampled_from("abc"), Count, max_size=2),
    outputs=st.dictionaries(st.sampled_from(["y", "z"]), st.dictionaries(st.sampled_from(["0", "p3", "1:cat"]), Count)),
    labelled=st.just(30), correct=Count,
)  # fmt: skip
Windows = st.lists(
    st.builds(Window, Arms, Arms, st.sampled_from("12"), st.just({"canary": 5, "stable": 95})), max_size=8
)


@settings(deadline=None, max_examples=40)
@given(Windows, st.sets(st.integers(0, 8)), st.sampled_from([{}, {"signals": {"slow": None}}, {"slow_s": 0.01}]))
def test_a_judge_that_is_restarted_at_any_point_goes_on_exactly(
    windows: list[Window], restarts: set[int], plain: dict[str, Any]
) -> None:
    whole, resumed = Judge(Policy.from_json(plain)), Judge(Policy.from_json(plain))
    for number, window in enumerate(windows):
        if number in restarts:
            resumed = Judge.from_json(json.loads(json.dumps(resumed.to_json(), allow_nan=False)))
        if number == 4:
            whole.begin_step()
            resumed.begin_step()
        whole.observe(window)
        resumed.observe(window)
    assert resumed.to_json() == whole.to_json()
    assert resumed.findings() == whole.findings()
    assert resumed.may_promote() == whole.may_promote()


def test_the_state_is_bounded() -> None:
    judge = Judge()
    random = np.random.default_rng(1)
    sizes = []
    for epoch in range(60):
        for _ in range(5):
            bins = {f"p{random.integers(-500, 500)}": 5 for _ in range(100)}
            runs = {str(random.integers(0, 400)): 3 for _ in range(100)}
            arm = Arm(eligible=1000, run_s=runs, keys={f"{epoch}": 500}, outputs={"a": bins, "b": bins})
            judge.observe(Window(arm, arm, str(epoch), {"canary": 1, "stable": 1}))
        sizes.append(len(json.dumps(judge.to_json())))
    assert sizes[-1] < 120_000
    assert sizes[-1] < 1.2 * sizes[30]


@pytest.mark.parametrize("plain", [{}, {"schema": 2}, {"schema": 1, "policy": {}}, {"schema": 1, "policy": 5}])
def test_what_is_no_state_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schema|state of a judge"):
        Judge.from_json(plain)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Arm(eligible=-1)
    with pytest.raises(ValueError, match="negative"):
        Arm(labelled=1, correct=2)
