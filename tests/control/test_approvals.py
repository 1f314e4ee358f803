"""The rules of approval: when it is needed, who counts, how long it lasts; and the books that keep them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.approvals import APPROVED, EXPIRED, OPEN, VOID, Approvals, Change, digest_of, widens
from gateway.control.changes import Desk, Outcome
from gateway.control.gate import Gate, NeverBack
from gateway.control.review import KEPT_CLOSED, Review
from gateway.control.stakes import stakes_are_high
from gateway.errors import ApprovalPending, ChangeRefused, Forbidden, GatewayError, RevisionConflict
from gateway.flags.audit import Author
from gateway.flags.compile import compile_route
from gateway.flags.document import Flag, parse_flag
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import Note, note, verify_trail
from gateway.models.source import DirectorySource
from tests import builders
from tests.control.process import route, split
from tests.puppet import FakeClock

ADA = Author("ada", token_id="a1")
BOB = Author("bob", token_id="b1")
CY = Author("cy", token_id="c1")
DAY_S = 86_400.0


def flag(targeting: Any = None, *, default: str = "stable", state: str = "ENABLED", **metadata: Any) -> Flag:
    variants = {"stable": "1", "canary": "2"}
    plain = {
        "state": state,
        "variants": variants,
        "defaultVariant": default,
        "metadata": metadata,
        "targeting": targeting,
    }
    return parse_flag("iris.route", plain)


def people_needed(before: Flag | None, after: Flag, *, required: int = 2, high: bool = True) -> int:
    rules = Approvals(lambda _model: high, required=required, lifetime_s=DAY_S)
    old = None if before is None else compile_route("iris", before)
    new = compile_route("iris", after)
    return rules.needed("iris", old, new, widened=widens(before, after, old, new))


def beta(then: Any = "canary", otherwise: Any = None, value: str = "yes") -> dict[str, Any]:
    steps = [{"==": [{"var": "headers.x-beta"}, value]}, then]
    return {"if": [*steps, *([] if otherwise is None else [otherwise])]}


RAISES = [
    (flag(), flag(split(1))),
    (flag(split(5)), flag(split(6))),
    (flag(split(5), state="DISABLED"), flag(split(5))),
    (flag(), flag(default="canary")),
    (flag(default="canary"), flag()),
    (None, flag(split(1))),
    (flag(beta()), flag(beta(value="no"))),  # the condition is another one
    (flag(beta()), flag({"if": [True, "canary"]})),
    (flag(beta()), flag(split(10))),  # from a few to a share of all
    (flag(beta(split(50), split(1))), flag(beta(split(1), split(50)))),  # the shares change places
    (flag(beta(split(50))), flag(beta(split(51)))),
    (flag(split(5), missingKey="default"), flag(split(5), missingKey="random")),
]
LOWERS = [
    (flag(split(5)), flag(split(4))),
    (flag(split(5)), flag(split(0))),
    (flag(split(5)), flag()),
    (flag(split(5)), flag(split(5), state="DISABLED")),
    (flag(beta()), flag(beta(), state="DISABLED")),
    (flag(beta()), flag()),
    (flag(beta(split(50), split(10))), flag(beta(split(49), split(10)))),
    (flag(beta(split(50), split(10))), flag(beta(split(50), split(0)))),
    (flag(split(5)), flag(split(5), owner="risk")),
    (flag(beta()), flag(beta(), owner="risk")),
    (None, flag()),
]


@pytest.mark.parametrize(("before", "after"), RAISES)
def test_more_exposure_needs_approval_where_stakes_are_high(before: Flag | None, after: Flag) -> None:
    assert people_needed(before, after) == 2
    assert people_needed(before, after, high=False) == 0


@pytest.mark.parametrize(("before", "after"), LOWERS)
def test_less_exposure_never_needs_approval(before: Flag | None, after: Flag) -> None:
    assert people_needed(before, after) == 0


def test_stakes_are_what_any_card_of_the_model_says(models: Path) -> None:
    def write(version: str, card: Any) -> None:
        builders.write_package(models, builders.classifier("iris", version), card=card)

    assert not stakes_are_high(models, "iris")
    write("1", None)
    write("2", {"stakes": "low"})
    assert not stakes_are_high(models, "iris")
    write("3", {"stakes": "high"})
    write("4", None)
    assert stakes_are_high(models, "iris")
    assert not stakes_are_high(models, "wine")
    for model, card in (("odd", {"stakes": "HIGH"}), ("number", {"stakes": 1})):
        builders.write_package(models, builders.classifier(model, "1"), card=card)
        assert stakes_are_high(models, model)
    builders.write_package(models, builders.classifier("torn", "1"))
    (models / "torn" / "1" / "manifest.json").write_text("{")
    assert stakes_are_high(models, "torn")
    builders.write_bare(models, builders.classifier("bare", "1"))
    assert not stakes_are_high(models, "bare")


# -- who counts -------------------------------------------------------------------------------------


def proposed(rules: Approvals, author: Author = ADA, now_s: float = 0.0) -> Change:
    return rules.propose(
        model="iris",
        what="flag",
        verb="flag.put",
        target="iris.route",
        based_on=1,
        before=route(),
        after=route(targeting=split(10)),
        author=author,
        reason="a test",
        required=2,
        now_s=now_s,
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ada", "Ada", "ADA", "bob", "Bob", "cy"]),
            st.sampled_from(["a1", "b1", "c1", "x", ""]),
            st.floats(0, 2 * DAY_S),
        ),
        max_size=6,
    )
)
def test_whatever_is_tried_only_enough_other_people_in_time_approve(tries: list[tuple[str, str, float]]) -> None:
    rules = Approvals(lambda _model: True, required=2, lifetime_s=DAY_S)
    change = proposed(rules)
    for name, token_id, now_s in tries:
        try:
            change = rules.approve(change, Author(name, token_id=token_id), reason="", now_s=now_s)
        except (Forbidden, ChangeRefused):
            assert True
        people = {each.actor.casefold() for each in change.approvals}
        assert "ada" not in people
        assert "a1" not in {each.token_id for each in change.approvals}
        assert len(people) == len(change.approvals)
        assert all(each.at_s < DAY_S for each in change.approvals)
        assert rules.approved(change, 0.0) == (len(people) >= 2) == (change.state == APPROVED)
        assert not rules.approved(change, DAY_S)


def test_a_setting_that_was_raised_meanwhile_counts() -> None:
    change = proposed(Approvals(lambda _model: True, required=2, lifetime_s=DAY_S))
    stricter = Approvals(lambda _model: True, required=3, lifetime_s=DAY_S)
    for by in (BOB, CY):
        change = stricter.approve(change, by, reason="", now_s=1.0)
    assert (change.state, stricter.missing(change)) == (OPEN, 1)


@given(st.sampled_from(["what", "target", "based_on", "before", "after"]))
def test_the_digest_is_over_all_that_an_approver_agrees_to(name: str) -> None:
    fields: dict[str, Any] = {"what": "flag", "target": "iris.route", "based_on": 1, "before": {}, "after": {"a": 1}}
    other = {**fields, name: 2 if name == "based_on" else "other"}
    assert digest_of(**fields) != digest_of(**other)


# -- the books --------------------------------------------------------------------------------------


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
