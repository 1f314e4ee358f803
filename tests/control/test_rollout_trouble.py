"""Rollouts that meet what they cannot use: every wait still has an end, and one in trouble stops no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.changes import Desk
from gateway.control.controller import Controller
from gateway.control.rollouts import GOING_ON, OVER
from gateway.control.status import WorkerStatus
from gateway.errors import ChangeRefused
from gateway.flags.audit import Author
from gateway.flags.store import RecordWrite, verify_trail
from gateway.models.source import DirectorySource
from tests.control.books import MODEL, OPS, Books, Worker

STEPS = [
    {"weight_percent": 5, "min_time_s": 60, "min_requests": 100},
    {"weight_percent": 50, "min_time_s": 60, "min_requests": 0},
]
WAITS = {"step_timeout_s": 600, "pause_timeout_s": 600}


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


class Odd(Worker):
    """A worker of another version of the gateway. told: what its document has instead."""

    told: dict[str, Any] = {}  # noqa: RUF012

    def status(self) -> WorkerStatus:
        found = super().status()
        return WorkerStatus({**found.document, **self.told}, found.age_s)


# -- what workers say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        {"signals": [{"model": MODEL}]},
        {"signals": 5},
        {"signals": [{"model": MODEL, "variant": "canary", "revision": "new"}]},
        {"signals": [{"model": MODEL, "variant": "canary", "revision": 10**6, "eligible": "many"}]},
        {"signals": [{"model": MODEL, "variant": "canary", "revision": 10**6, "eligible": 5, "errors": -1}]},
        {"signals": [{"model": MODEL, "variant": "canary", "revision": 10**6, "eligible": 5, "run_s": {"fast": 5}}]},
        {"signals": [{"model": MODEL, "variant": "canary", "revision": 10**6, "eligible": 5, "outputs": {"y": 3}}]},
        {"breakers": [{}]},
        {"breakers": "none"},
        {"models": {MODEL: {"versions": {}}}},
    ],
)
def test_a_worker_that_speaks_otherwise_is_passed_over(books: Books, told: dict[str, Any]) -> None:
    rollout_id = progressing(books)
    odd = Odd(2, 102)
    odd.follow(books)
    odd.told = told
    books.workers.append(odd)
    books.workers[0].count("canary", eligible=99)
    books.workers[0].count("stable", eligible=99)
    books.tick(10)
    assert books.find(rollout_id).state.step_requests == 99
    books.do(rollout_id, "abort")
    books.tick(61)
    assert books.phase(rollout_id) == "rolled_back"


def test_breakers_of_two_hosts_are_two_though_their_processes_have_one_number(books: Books) -> None:
    rollout_id = progressing(books)
    first, second = books.workers
    second.pid = first.pid
    opened = {"model": MODEL, "variant": "canary", "version": "2", "state": "open", "opened": 1, "reason": "it fails"}
    first.breakers = [opened]
    books.tick()
    assert books.phase(rollout_id) == "paused breaker"
    first.breakers = []
    books.do(rollout_id, "resume")
    second.breakers = [opened]
    books.tick()
    assert books.phase(rollout_id) == "paused breaker"


# -- what cannot be written -------------------------------------------------------------------------


def test_a_step_waits_for_a_worker_that_came_cold_and_no_longer_than_its_time(books: Books) -> None:
    rollout_id = progressing(books, **WAITS)
    books.workers[0].count("canary", eligible=100)
    books.workers[1] = Worker(1, 200)
    books.tick(61)
    assert books.find(rollout_id).state.why.startswith("not warm: worker 1")
    assert books.find(rollout_id).state.step_requests == 100
    books.tick(600)
    assert books.phase(rollout_id) == "paused inconclusive"
    books.tick(601)
    assert books.phase(rollout_id) == "aborting"


def test_what_was_counted_while_a_worker_was_cold_is_not_lost(books: Books) -> None:
    rollout_id = progressing(books, **WAITS)
    books.workers[0].count("canary", eligible=100)
    books.workers[1] = Worker(1, 200)
    books.tick(61)
    books.workers[1].follow(books)
    books.tick()
    assert books.find(rollout_id).state.step == 1


def test_a_rollout_that_may_not_write_any_more_gives_up(books: Books) -> None:
    """As where the flags have come to follow a file while it went on."""
    rollout_id = progressing(books, steps=[{**STEPS[0], "min_requests": 0}, STEPS[1]])
    books.desk = Desk(
        books.store,
        last_known_good=books.root / "state" / "flags.lkg.json",
        source=DirectorySource(books.root / "models"),
        workers=books.statuses,
        import_file="/flags.json",
    )
    books.rollouts = books.make_rollouts()
    books.controller = Controller(books.rollouts, books.statuses, clock=books.clock)
    books.tick()
    books.tick(60)
    assert books.phase(rollout_id) == "progressing"
    books.tick(59)
    assert books.phase(rollout_id) == "progressing"
    books.tick(2)
    assert books.phase(rollout_id) == "aborting"
    assert "could not go on" in books.find(rollout_id).state.why
    assert books.weights() == {}


def test_a_record_that_cannot_be_read_stops_nothing_else(books: Books) -> None:
    plan = {"strategy": "canary", "version": "2", "of_a_later_gateway": True}
    body = {"model": "other", "plan": plan, "state": {"phase": "progressing"}}
    books.store.commit(
        author=Author("later"), verb="rollout.start", reason="", records=[RecordWrite(GOING_ON, "other-1", body)]
    )
    rollout_id = progressing(books)
    assert [each.id for each in books.rollouts.all()] == [rollout_id]


def _damaged(body: Any, damage: str) -> Any:
    if damage == "of a later gateway":
        return {**body, "plan": {**body["plan"], "of_a_later_gateway": True}}
    if damage == "without what was before":
        return {name: value for name, value in body.items() if name != "base"}
    if damage == "nothing before":
        return {**body, "plan": {}, "base": {"variants": 7}}
    return ["no record"]


@pytest.mark.parametrize("damage", ["of a later gateway", "without what was before", "nothing before", "no record"])
def test_one_that_cannot_be_read_can_be_aborted_and_nothing_else(books: Books, damage: str) -> None:
    before = books.route()
    rollout_id = progressing(books)
    during = books.route()
    record = books.store.record(GOING_ON, rollout_id)
    assert record is not None
    body = _damaged(record.body, damage)
    books.store.commit(author=Author("later"), verb="x", reason="", records=[RecordWrite(GOING_ON, rollout_id, body)])
    books.tick()
    for verb in ("pause", "promote", "abort"):
        with pytest.raises(ChangeRefused, match="cannot be read by this gateway"):
            books.do(rollout_id, verb)
    with pytest.raises(ChangeRefused, match="abort it first"):
        books.edit(defaultVariant="canary")
    assert [*books.rollouts.unreadable()] == [*books.rollouts.unreadable(MODEL)] == [rollout_id]

    told = books.rollouts.end_unreadable(rollout_id, author=OPS, reason="a test")
    assert told is not None
    is_restored = damage == "of a later gateway"
    assert ("the route is what it was before" in told["why"]) == is_restored
    assert books.route() == (before if is_restored else during)
    (row,) = [row for row in books.store.history(f"rollout:{rollout_id}", limit=10) if row.verb == "rollout.abort"]
    assert (row.actor, row.before) == (OPS.actor, body)
    books.tick()
    assert books.rollouts.end_unreadable(rollout_id, author=OPS, reason="a test") is None
    assert books.rollouts.unreadable() == {}
    if is_restored:
        assert progressing(books) == f"{MODEL}-2", "its name is not given again"


def test_an_experiment_is_promoted_by_itself_only_if_the_judge_agrees(books: Books) -> None:
    half = [{"weight_percent": 50, "min_time_s": 5, "min_requests": 10}]
    rollout_id = progressing(books, strategy="experiment", promote="auto", steps=half)
    books.workers[0].count("candidate", eligible=20)
    books.workers[0].count("stable", eligible=20)
    books.tick(10)
    assert books.phase(rollout_id) == "progressing"
    assert "of 500 canary requests" in books.find(rollout_id).state.why


def test_a_fault_of_the_gateway_itself_ends_one_rollout_and_not_control(books: Books) -> None:
    rollout_id = progressing(books)
    record = books.store.record(GOING_ON, rollout_id)
    assert record is not None
    body = {**record.body, "state": {**record.body["state"], "step": 7}}
    books.store.commit(
        author=Author("fault"), verb="rollout.save", reason="", records=[RecordWrite(GOING_ON, rollout_id, body)]
    )
    books.tick()
    books.tick(61)
    assert books.phase(rollout_id) == "aborting"
    assert books.find(rollout_id).state.why.endswith("unexpected IndexError, see the log")
    assert books.weights() == {}


# -- what is kept -----------------------------------------------------------------------------------


def test_ended_rollouts_are_kept_up_to_a_number(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.control.rollouts.KEPT_OVER", 3)
    last = ""
    for _ in range(6):
        last = books.start(steps=STEPS)
        books.follow()
        books.workers[0].count("canary", eligible=10, errors=1)
        books.do(last, "abort")
        books.tick(61)
        books.tick(61)
    records = books.store.records(OVER)
    assert len(records) == 3
    assert last in {each.id for each in records}
    assert books.rollouts.all(MODEL)[0].id == last == f"{MODEL}-6"
