"""Rollouts while somebody else acts at the same moment: the kill switch, an editor, what was left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ChangeRefused, InvalidInput, RevisionConflict
from gateway.flags.store import verify_trail
from tests.control.books import MODEL, OPS, ROUTE, Books, Worker

STEPS = [
    {"weight_percent": 5, "min_time_s": 60, "min_requests": 0},
    {"weight_percent": 50, "min_time_s": 60, "min_requests": 0},
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


@pytest.mark.parametrize("verb", ["resume", "promote", "promoteFull"])
def test_no_verb_undoes_a_kill_switch_that_the_controller_has_not_seen_yet(books: Books, verb: str) -> None:
    rollout_id = progressing(books)
    if verb == "resume":
        books.do(rollout_id, "pause")
    books.edit(state="DISABLED")
    with pytest.raises(ChangeRefused, match="kill switch"):
        books.do(rollout_id, verb)
    assert books.route()["state"] == "DISABLED"
    books.tick()
    assert books.phase(rollout_id) == "aborting"


@pytest.mark.parametrize("who", ["controller", "promote", "abort"])
def test_a_kill_switch_between_look_and_write_is_not_undone(books: Books, who: str) -> None:
    rollout_id = progressing(books)

    def pull() -> None:
        if books.route()["state"] == "ENABLED":
            books.edit(state="DISABLED")

    books.rollouts.meddle = pull
    if who == "controller":
        books.tick(61)
    elif who == "promote":
        with pytest.raises(ChangeRefused, match="kill switch"):
            books.do(rollout_id, "promote")
    else:
        books.do(rollout_id, "abort")
    assert books.route()["state"] == "DISABLED"
    books.tick()
    assert books.phase(rollout_id) == "aborting"


def test_an_edit_while_a_rollout_starts_is_not_lost(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit_meanwhile(_model: str, _version: str) -> None:
        books.edit(variants={"stable": "1", "mine": "3"})

    monkeypatch.setattr(books.desk, "check_package", edit_meanwhile)
    with pytest.raises(RevisionConflict):
        books.start(steps=STEPS)
    assert books.route()["variants"] == {"stable": "1", "mine": "3"}


def test_a_canary_leaves_the_shadow_of_somebody_else_alone(books: Books) -> None:
    books.edit(variants={"stable": "1", "shadow": "3"})
    for worker in books.workers:
        worker.follow(books)
    shadow = {"state": "ENABLED", "variants": {"rate": 0.2}, "defaultVariant": "rate"}
    books.desk.change_flag(
        f"{MODEL}.shadow", lambda _: shadow, expected_revision=0, author=OPS, verb="flag.put", reason="a test"
    )
    rollout_id = progressing(books)
    books.do(rollout_id, "abort")
    document = books.store.load()
    assert document is not None
    assert dict(document.flags[f"{MODEL}.shadow"].variants) == {"rate": 0.2}


def test_a_flip_takes_along_what_an_old_split_still_says(books: Books) -> None:
    books.edit(
        variants={"stable": "1", "canary": "1"},
        targeting={"fractional": [["stable", 10_000], ["canary", 0]]},
    )
    for worker in books.workers:
        worker.follow(books)
    rollout_id = progressing(books, strategy="bluegreen", steps=[])
    books.do(rollout_id, "promote")
    assert books.route()["defaultVariant"] == "green"
    assert {name for name, weight in books.weights().items() if weight} <= {"green"}


@pytest.mark.parametrize("rule", ["named", "computed"])
def test_declaring_a_candidate_gives_it_to_nobody(books: Books, rule: str) -> None:
    """Its version is warm already, so nothing else would stop a rule that can give the candidate's variant."""
    books.edit(variants={"stable": "1", "old": "2", "tried": "1"})
    for worker in books.workers:
        worker.follow(books)
    asked = {"===": [{"var": "headers.x-v"}, "new"]}
    targeting = {"if": [asked, {"$ref": "testers"} if rule == "named" else {"var": "headers.x-v"}]}
    plain = {
        "flags": {ROUTE: {**books.route(), "targeting": targeting}},
        "$evaluators": {"testers": {"if": [True, "tried"]}},
    }
    books.desk.change_document(lambda _: plain, expected_revision=None, author=OPS, verb="flag.put", reason="a test")
    for worker in books.workers:
        worker.follow(books)
    before = books.route()
    with pytest.raises(ChangeRefused, match="can give 'tried' to somebody"):
        books.start(steps=STEPS, variant="tried")
    assert books.route() == before
    books.tick()


def test_a_plan_whose_steps_cannot_be_written_into_the_rules_is_refused_at_the_start(books: Books) -> None:
    asked = {"===": [{"var": "headers.x-v"}, "new"]}
    books.edit(targeting={"if": [asked, "stable", {"if": [asked, "stable"]}]})
    with pytest.raises(InvalidInput, match="leaves nothing to a split"):
        books.start(steps=STEPS)


def test_a_shadow_waits_for_the_end_of_another(books: Books) -> None:
    books.edit(variants={"stable": "1", "shadow": "3"})
    shadow = {"state": "ENABLED", "variants": {"rate": 0.2}, "defaultVariant": "rate"}

    def put(expected_revision: int) -> None:
        books.desk.change_flag(
            f"{MODEL}.shadow",
            lambda _: shadow,
            expected_revision=expected_revision,
            author=OPS,
            verb="flag.put",
            reason="a test",
        )

    put(0)
    with pytest.raises(ChangeRefused, match="shadows the model already"):
        books.start(strategy="shadow")
    books.desk.change_flag(
        f"{MODEL}.shadow", lambda _: None, expected_revision=None, author=OPS, verb="flag.delete", reason="a test"
    )
    books.start(strategy="shadow")
    with pytest.raises(ChangeRefused, match=r"in charge of iris\.shadow"):
        put(0)


def test_a_promotion_is_rolled_back_also_if_somebody_pulled_the_kill_switch_first(books: Books) -> None:
    """After a promotion the switch alone does not help: the default variant is what it was pulled for."""
    rollout_id = progressing(books)
    books.do(rollout_id, "promoteFull")
    books.follow()
    books.edit(state="DISABLED")
    books.do(rollout_id, "rollback")
    assert books.route()["variants"] == {"stable": "1"}
    assert books.route()["state"] == "DISABLED"


def test_a_rollout_that_was_declared_when_the_switch_went_off_and_on_again_can_go_on(books: Books) -> None:
    rollout_id = books.start(steps=STEPS)
    books.edit(state="DISABLED")
    books.edit(state="ENABLED")
    books.tick()
    assert books.phase(rollout_id) == "paused edited"
    books.do(rollout_id, "resume")
    assert books.phase(rollout_id) == "declared"
    books.follow()
    assert books.phase(rollout_id) == "progressing"


def test_the_newest_rollout_is_the_newest_though_the_clock_was_set_back(books: Books) -> None:
    first = progressing(books)
    books.do(first, "promoteFull")
    books.follow()
    books.wall_s -= 86_400
    second = progressing(books, version="3")
    books.do(second, "promoteFull")
    books.follow()
    assert [each.id for each in books.rollouts.all(MODEL)] == [second, first]
    books.do(second, "rollback")
    assert books.route()["variants"] == {"stable": "2", "previous": "1"}
