"""Rollouts from their start to their end, by verbs, by time, and by what the workers say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ChangeRefused, UnknownModel, UnknownRollout, VersionNotWarm
from gateway.flags.compile import compile_route
from gateway.flags.document import Json, parse_flag
from gateway.flags.store import verify_trail
from tests.control.books import MODEL, OPS, ROUTE, Books, Worker

STEPS = [
    {"weight_percent": 5, "min_time_s": 60, "min_requests": 100},
    {"weight_percent": 50, "min_time_s": 10, "min_requests": 0},
]


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path)
    made.workers = [Worker(0, 100), Worker(1, 101)]
    yield made
    verify_trail(made.store)
    made.store.close()


def progressing(books: Books, **plan: Any) -> str:
    """A rollout whose first step has begun in all workers."""
    rollout_id = books.start(**{"steps": STEPS, **plan})
    books.follow()
    for worker in books.workers:
        worker.follow(books)
    assert books.phase(rollout_id) == "progressing"
    return rollout_id


def decided(route: Json, key: str) -> str:
    """The version that a targeting key gets."""
    return compile_route(MODEL, parse_flag(ROUTE, route)).decide(key, key, {}, "native").version


def complete_step(books: Books, elapsed_s: float = 100.0) -> None:
    for worker in books.workers:
        worker.follow(books)
        worker.count("canary", eligible=3000)
        worker.count("stable", eligible=3000)
    books.tick(elapsed_s)


def test_a_canary_goes_step_by_step_to_the_end(books: Books) -> None:
    rollout_id = books.start(steps=STEPS)
    assert rollout_id == "iris-1"
    assert books.route()["variants"] == {"stable": "1", "canary": "2"}
    books.tick()
    assert books.phase(rollout_id) == "declared"  # no worker has read the route yet
    books.follow()
    assert books.weights() == {"canary": 500, "stable": 9500}
    books.workers[0].follow(books)
    books.workers[0].count("canary", eligible=99)
    books.tick(59)
    assert books.find(rollout_id).state.why.startswith("99 of 100 requests")
    books.workers[0].count("canary", eligible=1)
    books.tick(0.5)
    assert "of 60 s in this step" in books.find(rollout_id).state.why
    books.tick(0.6)
    assert books.weights() == {"canary": 5000, "stable": 5000}
    complete_step(books)
    assert books.phase(rollout_id) == "promoting"
    assert books.route() == {
        "state": "ENABLED",
        "variants": {"stable": "2", "previous": "1"},
        "defaultVariant": "stable",
        "metadata": {},
    }
    books.follow()
    assert books.phase(rollout_id) == "healthy"
    assert books.verbs(rollout_id) == ["start", "step", "step", "promote", "promoted"]


def test_the_version_before_comes_back_with_one_verb_after_the_promotion(books: Books) -> None:
    rollout_id = progressing(books)
    books.do(rollout_id, "promoteFull")
    books.follow()
    assert books.phase(rollout_id) == "healthy"
    books.do(rollout_id, "rollback")
    assert books.phase(rollout_id) == "aborting"
    assert books.route()["variants"] == {"stable": "1"}
    books.follow()
    assert books.phase(rollout_id) == "rolled_back"
    with pytest.raises(ChangeRefused, match="rolled_back"):
        books.do(rollout_id, "rollback")


def test_only_the_newest_rollout_can_be_rolled_back(books: Books) -> None:
    first = progressing(books)
    books.do(first, "promoteFull")
    books.follow()
    second = books.start(version="3", steps=STEPS)
    with pytest.raises(ChangeRefused, match="iris-2 came after iris-1"):
        books.do(first, "rollback")
    books.do(second, "abort")
    books.follow()
    assert books.route()["variants"] == {"stable": "2", "previous": "1"}


def test_versions_before_are_kept_warm_up_to_the_number_of_the_plan(books: Books) -> None:
    for version, variants in (
        ("2", {"stable": "2", "previous": "1"}),
        ("3", {"stable": "3", "previous": "2", "previous-2": "1"}),
        ("1", {"stable": "1", "previous": "3", "previous-2": "2"}),
    ):
        rollout_id = progressing(books, version=version, keep_previous=2)
        books.do(rollout_id, "promoteFull")
        books.follow()
        assert books.route()["variants"] == variants


@pytest.mark.parametrize("phase", ["declared", "progressing", "paused", "promoting"])
def test_abort_works_in_every_phase_and_brings_the_route_back(books: Books, phase: str) -> None:
    before = books.route()
    rollout_id = books.start(steps=STEPS)
    if phase != "declared":
        books.follow()
    if phase == "paused":
        books.do(rollout_id, "pause")
    if phase == "promoting":
        books.do(rollout_id, "promoteFull")
    assert books.phase(rollout_id).startswith(phase)
    books.do(rollout_id, "abort")
    assert books.route() == before
    books.follow()
    assert books.phase(rollout_id) == "rolled_back"


def test_a_candidate_that_cannot_be_loaded_ends_its_rollout_at_once(books: Books) -> None:
    rollout_id = books.start(steps=STEPS)
    books.workers[0].follow(books)
    books.workers[1].follow(books, loads=frozenset({"1"}))
    books.tick()
    assert books.phase(rollout_id) == "aborting"
    assert "failed on worker 1: it is broken" in books.find(rollout_id).state.why


def test_a_candidate_that_is_never_warm_is_given_up(books: Books) -> None:
    rollout_id = books.start(steps=STEPS, warm_timeout_s=30)
    books.workers[0].follow(books)
    books.tick()
    books.tick(20)
    assert books.phase(rollout_id) == "declared"
    books.tick(20)
    assert books.phase(rollout_id) == "aborting"
    assert "worker 1: unknown" in books.find(rollout_id).state.why


def test_no_traffic_without_a_live_worker(books: Books) -> None:
    books.workers = []
    rollout_id = books.start(steps=STEPS)
    books.tick()
    assert books.phase(rollout_id) == "declared"


def test_a_step_that_never_completes_pauses_and_a_pause_that_nobody_ends_aborts(books: Books) -> None:
    rollout_id = progressing(books, step_timeout_s=1000, pause_timeout_s=500)
    books.tick(1001)
    assert books.phase(rollout_id) == "paused inconclusive"
    assert books.weights() == {"canary": 500, "stable": 9500}
    books.tick(499)
    assert books.phase(rollout_id) == "paused inconclusive"
    books.tick(2)
    assert books.phase(rollout_id) == "aborting"


def test_pause_and_resume(books: Books) -> None:
    rollout_id = progressing(books)
    with pytest.raises(ChangeRefused, match="only one that is paused"):
        books.do(rollout_id, "resume")
    books.do(rollout_id, "pause")
    complete_step(books)
    assert books.phase(rollout_id) == "paused manual"
    books.do(rollout_id, "resume")
    books.tick()
    assert books.find(rollout_id).state.step_requests == 0  # the step begins anew
    complete_step(books)
    assert books.weights() == {"canary": 5000, "stable": 5000}


def test_promote_goes_to_the_next_step_without_its_minimum(books: Books) -> None:
    rollout_id = progressing(books)
    books.do(rollout_id, "promote")
    assert books.weights() == {"canary": 5000, "stable": 5000}
    books.do(rollout_id, "promote")
    assert books.phase(rollout_id) == "promoting"


def test_a_verb_gives_no_traffic_to_a_version_that_a_live_worker_has_not_warmed(books: Books) -> None:
    rollout_id = progressing(books)
    books.workers[1] = Worker(1, 300)
    route = books.route()
    with pytest.raises(VersionNotWarm, match="version 2 of 'iris' is unknown on worker 1"):
        books.do(rollout_id, "promote")
    assert books.route() == route
    assert books.phase(rollout_id) == "progressing"


def test_a_manual_promotion_waits_at_its_gate(books: Books) -> None:
    rollout_id = progressing(books, promote="manual", steps=STEPS[:1])
    complete_step(books)
    assert books.phase(rollout_id) == "paused gate"
    with pytest.raises(ChangeRefused, match="promote it, or abort it"):
        books.do(rollout_id, "resume")
    books.do(rollout_id, "promote")
    assert books.phase(rollout_id) == "promoting"


def test_blue_green_previews_by_header_and_flips_both_ways(books: Books) -> None:
    rollout_id = books.start(strategy="bluegreen")
    books.follow()
    previewed = books.route()
    assert previewed["variants"] == {"stable": "1", "green": "2"}
    assert previewed["targeting"]["if"][1] == "green"
    assert previewed["defaultVariant"] == "stable"
    books.follow()
    assert books.phase(rollout_id) == "paused gate"
    books.do(rollout_id, "promote")
    assert books.route() == {
        "state": "ENABLED",
        "variants": {"stable": "1", "green": "2"},
        "defaultVariant": "green",
        "metadata": {},
    }
    books.follow()
    books.do(rollout_id, "rollback")
    assert books.route()["defaultVariant"] == "stable"
    books.follow()
    again = books.start(strategy="bluegreen", version="3")
    assert books.find(again).variant == "green"


def test_an_experiment_keeps_its_split_until_somebody_decides(books: Books) -> None:
    rollout_id = books.start(strategy="experiment", steps=[{"weight_percent": 50, "min_time_s": 5, "min_requests": 10}])
    books.follow()
    assert books.weights() == {"candidate": 5000, "stable": 5000}
    for worker in books.workers:
        worker.follow(books)
        worker.count("candidate", eligible=50)
    books.tick(10)
    assert books.phase(rollout_id) == "paused complete"
    books.do(rollout_id, "abort")
    assert books.weights() == {}


def test_the_kill_switch_ends_a_rollout_and_stays_pulled(books: Books) -> None:
    rollout_id = progressing(books)
    books.edit(state="DISABLED")
    books.tick()
    assert books.phase(rollout_id) == "aborting"
    assert books.route()["state"] == "DISABLED"
    assert books.route()["variants"] == {"stable": "1"}


def test_nobody_else_edits_the_route_meanwhile(books: Books) -> None:
    rollout_id = progressing(books)
    swapped = {"fractional": [["stable", 9500], ["canary", 500]]}
    for fields in ({"targeting": swapped}, {"targeting": None}, {"variants": {"stable": "3", "canary": "2"}}):
        with pytest.raises(ChangeRefused, match=f"rollout {rollout_id} is in charge of {ROUTE}"):
            books.edit(**fields)
    books.do(rollout_id, "abort")
    books.follow()
    books.edit(metadata={"owner": "risk"})


def test_an_open_breaker_pauses_once_and_again_when_it_opens_again(books: Books) -> None:
    rollout_id = progressing(books)
    breaker = {
        "model": MODEL,
        "variant": "canary",
        "version": "2",
        "state": "open",
        "opened": 1,
        "reason": "5 in a row",
    }
    books.workers[1].breakers = [breaker]
    books.tick()
    assert books.phase(rollout_id) == "paused breaker"
    books.do(rollout_id, "resume")
    books.tick()
    assert books.phase(rollout_id) == "progressing"
    books.workers[1].breakers = [{**breaker, "opened": 2}]
    books.tick()
    assert books.phase(rollout_id) == "paused breaker"


def test_counts_are_taken_once_whatever_restarts(books: Books) -> None:
    rollout_id = progressing(books)
    books.workers[0].count("canary", eligible=10, errors=1)
    books.tick(6)  # written down
    books.workers[0].count("canary", eligible=20, errors=2)
    books.tick(0.25)  # taken, but not written down
    books.restart()
    books.tick()
    books.tick(6)
    found = books.find(rollout_id)
    assert found.state.step_requests == 30
    assert found.judge.requests == [30, 0]
    books.workers[0] = Worker(0, 200)  # a worker that takes the place of a dead one counts from nothing
    books.workers[0].follow(books)
    books.workers[0].count("canary", eligible=5)
    books.tick(6)
    assert books.find(rollout_id).state.step_requests == 35


def test_time_goes_on_only_while_a_controller_looks(books: Books) -> None:
    rollout_id = progressing(books)
    books.wall_s += 10_000  # a jump of the clock
    books.tick(6)
    books.restart()
    books.clock.now_s += 5000  # nobody was there
    books.controller.tick()
    books.tick(6)
    assert books.find(rollout_id).state.in_step_s == pytest.approx(12)


def test_one_rollout_of_a_model_at_a_time_and_ids_are_never_used_again(books: Books) -> None:
    first = books.start(steps=STEPS)
    with pytest.raises(ChangeRefused, match="iris-1 of 'iris' is declared"):
        books.start(steps=STEPS)
    books.do(first, "abort")
    books.follow()
    assert books.start(steps=STEPS) == "iris-2"


def test_what_cannot_be_started(books: Books) -> None:
    with pytest.raises(ChangeRefused, match="no package iris/9; there are versions 1, 2, 3"):
        books.start(version="9")
    with pytest.raises(ChangeRefused, match="answers with already"):
        books.start(version="1")
    with pytest.raises(UnknownModel):
        books.rollouts.start("nothing", {"strategy": "canary", "version": "2"}, author=OPS, reason="")
    with pytest.raises(UnknownRollout):
        books.do("iris-7", "abort")
    for worker in books.workers:
        worker.follow(books)
    books.edit(variants={"stable": "1", "beta": "2"})
    for worker in books.workers:
        worker.follow(books)
    books.edit(targeting={"fractional": [["beta", 10], ["stable", 90]]})
    with pytest.raises(ChangeRefused, match="traffic to beta 10 % already"):
        books.start(version="3")
    books.edit(targeting={"if": [{"===": [{"var": "headers.x-tier"}, "gold"]}, "beta"]})
    with pytest.raises(ChangeRefused, match=r"a rule of the route names 'beta'.*--variant"):
        books.start(version="3", variant="beta")
    books.edit(state="DISABLED")
    with pytest.raises(ChangeRefused, match="DISABLED"):
        books.start(version="3")


@pytest.mark.parametrize("strategy", ["canary", "experiment", "bluegreen"])
def test_a_variant_that_was_taken_back_by_hand_can_be_released_again(books: Books, strategy: str) -> None:
    books.edit(variants={"stable": "1", "beta": "2"}, targeting={"fractional": [["beta", 0], ["stable", 10000]]})
    before = books.route()
    rollout_id = books.start(strategy=strategy, version="3", variant="beta")
    books.follow()
    assert books.phase(rollout_id) == "progressing"
    books.do(rollout_id, "promoteFull")
    route = books.route()
    assert {decided(route, key) for key in "abcdefgh"} == {"3"}
    books.do(rollout_id, "rollback")
    assert {**books.route(), "metadata": None} == {**before, "metadata": None}
