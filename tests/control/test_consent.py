"""Rollouts of models of high stakes: no traffic before others have approved exactly that plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.control.approvals import Approvals
from gateway.control.changes import Desk
from gateway.control.consent import Consent
from gateway.control.gate import Gate, NeverBack
from gateway.control.record import Rollout
from gateway.control.review import Review
from gateway.errors import ApprovalPending, ChangeRefused, Forbidden
from gateway.flags.audit import Author
from gateway.flags.store import verify_trail
from gateway.models.source import DirectorySource
from tests.control.books import MODEL, OPS, ROUTE, Books, Overtaken, Worker

ADA, BOB = Author("ada", token_id="t7"), Author("bob", token_id="t8")


class Careful(Books):
    """Books in which the stakes of every model are high."""

    required = 1

    def make_rollouts(self) -> Overtaken:
        now = NeverBack(lambda: self.wall_s)
        self.approvals = approvals = Approvals(lambda _model: True, required=self.required, lifetime_s=3600)
        self.broken = 0

        def count() -> None:
            self.broken += 1

        consent = Consent(self.store, approvals, clock=now, count_break_glass=count)
        self.review = Review(self.store, self.desk, approvals, clock=now)
        return Overtaken(self.store, self.desk, consent, clock=lambda: self.wall_s)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Careful]:
    made = Careful(tmp_path)
    made.workers = [Worker(0, 100)]
    yield made
    verify_trail(made.store)
    made.store.close()


def waiting(books: Careful) -> tuple[str, str]:
    """A rollout that waits for approval, and the id of its proposal."""
    rollout_id = books.start()
    books.follow()
    assert books.phase(rollout_id) == "paused gate"
    assert books.weights() == {}
    assert books.find(rollout_id).state.why == "waits for one more person to approve it"
    return rollout_id, books.find(rollout_id).change_id


def test_no_traffic_before_somebody_else_has_approved_the_plan(books: Careful) -> None:
    rollout_id, change_id = waiting(books)
    with pytest.raises(Forbidden, match="is the author"):
        books.review.approve(change_id, OPS)
    books.tick()
    assert books.phase(rollout_id) == "paused gate"
    books.review.approve(change_id, ADA, reason="seen")
    books.restart()
    books.tick()
    assert books.phase(rollout_id) == "progressing"
    assert books.weights() == {"canary": 100, "stable": 9900}
    assert books.review.find(change_id).state == "applied"
    rows = books.store.history(f"change:{change_id}")
    assert [row.verb for row in rows] == ["change.propose", "change.approve", "change.apply"]


def test_as_many_as_the_setting_says(books: Careful) -> None:
    books.required = 2
    books.restart()
    rollout_id = books.start()
    books.follow()
    change_id = books.find(rollout_id).change_id
    books.review.approve(change_id, ADA)
    books.tick()
    assert books.phase(rollout_id) == "paused gate"
    books.review.approve(change_id, BOB)
    books.tick()
    assert books.phase(rollout_id) == "progressing"


@pytest.mark.parametrize("how", ["rejected", "expired"])
def test_a_plan_that_nobody_agrees_to_ends(books: Careful, how: str) -> None:
    rollout_id, change_id = waiting(books)
    if how == "rejected":
        books.review.reject(change_id, ADA, reason="not this week")
    else:
        books.wall_s += 3601
        books.review.sweep()
    books.tick()
    assert books.phase(rollout_id) == "aborting"
    assert how in books.find(rollout_id).state.why


def test_an_aborted_rollout_takes_its_proposal_along(books: Careful) -> None:
    rollout_id, change_id = waiting(books)
    books.do(rollout_id, "abort")
    assert books.review.find(change_id).state == "void"


def test_break_glass_goes_on_at_once_and_is_told(books: Careful) -> None:
    plan = {"strategy": "canary", "version": "2"}
    begun = books.rollouts.start(MODEL, plan, author=OPS, reason="the old one fails", break_glass=True)
    books.follow()
    assert books.phase(begun.id) == "progressing"
    assert books.broken == 1
    change = books.review.find(begun.change_id)
    assert change.state == "break_glass"
    rows = books.store.history(change.audit_target)
    assert [row.verb for row in rows] == ["change.break_glass", "alarm.break_glass"]
    with pytest.raises(Forbidden):
        books.review.acknowledge(change.id, OPS, reason="fine")
    books.review.acknowledge(change.id, ADA, reason="it was right")


def test_a_shadow_raises_nothing_and_needs_nobody(books: Careful) -> None:
    rollout_id = books.start(strategy="shadow")
    assert books.find(rollout_id).change_id == ""
    books.follow()
    assert books.phase(rollout_id) == "progressing"


@pytest.mark.parametrize("how", ["rejected", "expired"])
def test_one_yes_of_two_is_none_once_the_proposal_is_over(books: Careful, how: str) -> None:
    books.required = 2
    books.restart()
    rollout_id = books.start()
    books.follow()
    change_id = books.find(rollout_id).change_id
    books.review.approve(change_id, ADA)
    if how == "rejected":
        books.review.reject(change_id, BOB, reason="not this week")
    else:
        books.wall_s += 3601
        books.review.sweep()
    books.tick()
    assert books.weights() == {}
    assert books.phase(rollout_id) == "aborting"
    assert how in books.find(rollout_id).state.why


def test_a_no_that_comes_between_look_and_write_holds(books: Careful, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout_id, change_id = waiting(books)
    books.review.approve(change_id, ADA)
    consent_of = books.rollouts.consent_of

    def look_and_be_overtaken(found: Rollout) -> tuple[int, str]:
        seen = consent_of(found)
        if books.review.find(change_id).state == "approved":
            books.review.reject(change_id, BOB, reason="not this week")
        return seen

    monkeypatch.setattr(books.rollouts, "consent_of", look_and_be_overtaken)
    books.tick()
    assert books.weights() == {}
    books.tick()
    assert books.phase(rollout_id) == "aborting"


def test_a_reviewed_broken_glass_does_not_stop_its_rollout(books: Careful) -> None:
    plan = {"strategy": "canary", "version": "2"}
    begun = books.rollouts.start(MODEL, plan, author=OPS, reason="the old one fails", break_glass=True)
    books.review.acknowledge(begun.change_id, ADA, reason="it was right")
    books.follow()
    assert books.phase(begun.id) == "progressing"


def test_an_approved_change_of_a_flag_waits_while_a_rollout_is_in_charge(books: Careful) -> None:
    """Also if the rollout's start left the route as it was, so that the change is still based on it."""
    books.edit(variants={"stable": "1", "canary": "2"})
    gate = Gate(books.store, books.approvals, clock=NeverBack(lambda: books.wall_s), count_break_glass=lambda: None)
    careful = Desk(
        books.store,
        last_known_good=books.root / "state" / "other.json",
        source=DirectorySource(books.root / "models"),
        workers=books.statuses,
        gate=gate,
    )
    careful.recover()
    for worker in books.workers:
        worker.follow(books)
    half = {**books.route(), "targeting": {"fractional": [["stable", 1], ["canary", 1]]}}
    with pytest.raises(ApprovalPending) as pending:
        careful.change_flag(ROUTE, lambda _: half, expected_revision=None, author=OPS, verb="flag.put", reason="a test")
    rollout_id = books.start()
    with pytest.raises(ChangeRefused, match=f"rollout {rollout_id} is in charge"):
        books.review.approve(pending.value.change_id, ADA)
    assert books.weights() == {}
