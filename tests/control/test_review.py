"""The books of changes that wait for approval: applied, expired, voided, withdrawn, and what is forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.approvals import EXPIRED, OPEN, VOID, Approvals
from gateway.control.changes import Desk, Outcome
from gateway.control.gate import Gate, NeverBack
from gateway.control.review import KEPT_CLOSED, Review
from gateway.errors import ApprovalPending, ChangeRefused, Forbidden, GatewayError, RevisionConflict
from gateway.flags.audit import Author
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import Note, note, verify_trail
from gateway.models.source import DirectorySource
from tests.control.people import ADA, BOB, CY, DAY_S
from tests.control.process import route, split
from tests.puppet import FakeClock


class Board:
    """Desk, gate and books over a store of their own, for models of high stakes, with a clock that the test moves."""

    def __init__(self, state: Path, models: Path, *, required: int = 1) -> None:
        self.clock = FakeClock(1_800_000_000.0)
        self.store = SqliteStore(state / "flags.sqlite", clock=self.clock)
        self.glasses = 0
        self.required = required
        self._state = state
        self._models = models
        self.start()
        self.put(route(), by=ADA)

    def start(self) -> None:
        """Make the parts as a start of the process does."""
        now = NeverBack(self.clock)
        rules = Approvals(lambda _model: True, required=self.required, lifetime_s=DAY_S)
        gate = Gate(self.store, rules, clock=now, count_break_glass=self._count)
        self.desk = Desk(
            self.store,
            last_known_good=self._state / "flags.lkg.json",
            source=DirectorySource(self._models),
            workers=list,
            gate=gate,
        )
        self.review = Review(self.store, self.desk, rules, clock=now)

    def _count(self) -> None:
        self.glasses += 1

    def put(self, plain: Any, *, by: Author = ADA, break_glass: bool = False) -> Outcome:
        return self.desk.change_flag(
            "iris.route",
            lambda _before: plain,
            expected_revision=None,
            author=by,
            verb="flag.put",
            reason="a test",
            break_glass=break_glass,
        )

    def propose(self, canary: int = 10, by: Author = ADA) -> str:
        with pytest.raises(ApprovalPending) as raised:
            self.put(route(targeting=split(canary)), by=by)
        return raised.value.change_id

    def targeting(self) -> Any:
        return self.desk.document().flags["iris.route"].targeting

    @property
    def verbs(self) -> list[str]:
        return [row.verb for row in self.store.history(limit=10_000)]


@pytest.fixture
def board(state: Path, models: Path) -> Iterator[Board]:
    found = Board(state, models)
    yield found
    verify_trail(found.store)
    found.store.close()


def test_the_last_approval_applies_the_change_and_all_of_it_is_one_commit(board: Board) -> None:
    board.required = 2
    board.start()
    change_id = board.propose()
    assert board.targeting() is None
    assert board.review.approve(change_id, BOB, reason="looks right").state == OPEN
    before = board.store.history(newest_first=True, limit=1)[0].seq
    assert board.review.approve(change_id, CY).state == board.review.find(change_id).state == "applied"
    assert board.targeting() == split(10)
    rows = board.store.history(after=before)
    assert [row.verb for row in rows] == ["flag.put.approved", "change.approve", "change.apply"]
    assert {row.ts for row in rows} == {rows[0].ts}
    assert rows[0].reason == f"a test (change {change_id} of ada, approved by bob, cy)"
    assert rows[-1].after["approved_by"] == ["bob", "cy"]


def test_the_same_proposal_twice_is_one(board: Board) -> None:
    assert board.propose() == board.propose()
    assert board.propose(11) != board.propose()
    assert board.propose(by=BOB) != board.propose()


def test_a_proposal_expires_and_nothing_brings_it_back(board: Board) -> None:
    change_id = board.propose()
    board.clock.advance(DAY_S)
    assert board.review.find(change_id).state == EXPIRED
    board.clock.advance(-10 * DAY_S)  # a clock that is set back
    with pytest.raises(ChangeRefused, match="expired"):
        board.review.approve(change_id, BOB)
    board.start()  # and a new process, whose clock still is
    with pytest.raises(ChangeRefused, match="expired"):
        board.review.approve(change_id, BOB)
    assert board.targeting() is None
    assert board.verbs.count("change.expire") == 1
    assert board.propose() != change_id


def test_a_clock_set_back_before_anybody_looked_prolongs_nothing(board: Board) -> None:
    change_id = board.propose()
    board.clock.advance(DAY_S - 1)
    board.propose(11)  # the process sees the time
    board.clock.advance(-DAY_S)
    board.review.sweep()
    board.clock.advance(DAY_S + 1)
    assert board.review.find(change_id).state == EXPIRED


@pytest.mark.parametrize(
    "edit", [route(targeting=split(0)), {**route(), "state": "DISABLED"}, {**route(), "metadata": {"owner": "risk"}}]
)
def test_any_other_edit_of_the_flag_voids_it(board: Board, edit: Any) -> None:
    change_id = board.propose()
    board.put(edit, by=BOB)
    assert board.review.find(change_id).state == VOID
    with pytest.raises(RevisionConflict, match=r"is void: iris.route is at revision 2 now; the change is based on 1"):
        board.review.approve(change_id, BOB)
    board.put(route(), by=BOB)  # back to the same words, but not to the same revision
    with pytest.raises(RevisionConflict, match="is void"):
        board.review.approve(change_id, BOB)
    assert board.verbs.count("change.void") == 1


def test_an_approval_is_for_what_was_seen(board: Board) -> None:
    change_id = board.propose()
    with pytest.raises(RevisionConflict, match="not what was seen"):
        board.review.approve(change_id, BOB, digest="0" * 64)
    record = board.store.record("change", change_id)
    assert record is not None
    forged = {**record.body, "after": route(targeting=split(100))}
    board.store.commit(
        author=ADA,
        verb="",
        reason="",
        records=[dataclasses.replace(board.review.find(change_id), after=forged["after"]).write()],
    )
    with pytest.raises(RevisionConflict, match="not what was seen"):
        board.review.approve(change_id, BOB)
    assert board.targeting() is None


def test_breaking_the_glass_is_told_counted_and_waits_for_a_review(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    board.put(route(targeting=split(10)), break_glass=True)
    assert board.targeting() == split(10)
    assert board.glasses == 1
    assert [verb for verb in board.verbs if "break_glass" in verb] == [
        "flag.put.break_glass", "change.break_glass", "alarm.break_glass",
    ]  # fmt: skip
    assert any(record.levelname == "ERROR" and "glass" in record.message for record in caplog.records)
    (change,) = board.review.all()
    assert change.state == "break_glass"
    board.clock.advance(10 * DAY_S)
    board.review.sweep()
    for decide in (board.review.approve, board.review.apply):
        with pytest.raises(ChangeRefused):
            decide(change.id, BOB)
    with pytest.raises(Forbidden):
        board.review.acknowledge(change.id, Author("Ada", token_id="a2"), reason="it was me")
    assert board.review.acknowledge(change.id, BOB, reason="it had to be").state == "reviewed"
    with pytest.raises(ChangeRefused):
        board.review.acknowledge(change.id, CY, reason="again")
    assert "change.acknowledge" in board.verbs
    board.put(route(targeting=split(5)), break_glass=True)  # nothing had to be broken for less
    assert board.glasses == 1


def test_a_whole_document_that_raises_exposure_is_refused_but_for_the_broken_glass(board: Board) -> None:
    def everything(break_glass: bool) -> Outcome:
        return board.desk.change_document(
            lambda before: {**before, "flags": {"iris.route": route(targeting=split(10)), "wine.route": route()}},
            expected_revision=None,
            author=ADA,
            verb="flags.put",
            reason="a test",
            break_glass=break_glass,
        )

    with pytest.raises(ChangeRefused, match=r"iris\.route, which needs approval: change these flags one by one"):
        everything(break_glass=False)
    assert everything(break_glass=True).changed
    assert "flags.put.break_glass" in board.verbs
    assert board.glasses == 1


def test_old_decisions_are_forgotten_and_what_waits_is_not(board: Board) -> None:
    board.put(route(targeting=split(10)), break_glass=True)
    glass = board.review.all()[0].id
    board.put(route(), by=BOB)
    waiting = board.propose()
    for canary in range(11, 11 + 3):
        board.clock.advance(1)
        board.review.reject(board.propose(canary), BOB, reason="no")
    for i in range(KEPT_CLOSED):
        board.clock.advance(1)
        board.review.reject(board.propose(1 + i % 9), BOB, reason="no")
    board.review.sweep()
    kept = {change.id for change in board.review.all()}
    assert len(kept) == KEPT_CLOSED + 2
    assert {glass, waiting} <= kept


Decision = Callable[[str], object]


def test_what_is_over_stays_over(board: Board) -> None:
    change_id = board.propose()
    board.review.reject(change_id, BOB, reason="too early")
    decisions: list[Decision] = [
        lambda change: board.review.approve(change, CY),
        lambda change: board.review.reject(change, CY, reason="me too"),
        lambda change: board.review.apply(change, CY),
        lambda change: board.review.acknowledge(change, CY, reason="seen"),
    ]
    for decide in decisions:
        with pytest.raises(ChangeRefused, match="rejected"):
            decide(change_id)
    with pytest.raises(GatewayError, match="no change"):
        board.review.approve("nothing", CY)
    note(board.store, Note("alarm.test", "change:x"), author=CY, reason="")


def test_its_author_may_withdraw_it(board: Board) -> None:
    change_id = board.propose()
    assert board.review.reject(change_id, ADA, reason="my mistake").state == "rejected"
    assert board.verbs[-1] == "change.withdraw"
