"""The monitor's alarms as a signal of rollouts: they pause, once, and only for what came while the rollout went on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.control import observation
from gateway.control.beside import Beside, DriftReports, finding
from gateway.flags.store import verify_trail
from gateway.offline.drift import Rules
from gateway.offline.history import Alarm, AlarmRule, TopFeature
from gateway.offline.report import BesideReport, DriftDocument, VersionReport
from tests.control.books import Books, Worker

STEPS = [{"weight_percent": 50, "min_time_s": 10_000, "min_requests": 0}]
S = 10**9


def alarm(name: str = "score", effect: float = 0.31, *, role: str = "output", since_ns: int = 0) -> dict[str, Any]:
    top = (TopFeature("age", 0.1),)
    found = Alarm(name, role, 2, 3, 7, 9, 280, 300, "ks", 0.4, 1e-13, 2e-12, effect, "", top, ("p1",), since_ns)  # type: ignore[arg-type]
    return dataclasses.asdict(found)


def beside(*alarms: Mapping[str, Any], baseline: str = "1") -> Beside:
    return Beside(baseline, "none of 5 columns drifted", 300, 280, alarms, 2)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path)
    made.workers = [Worker(0, 100)]
    yield made
    verify_trail(made.store)
    made.store.close()


def progressing(books: Books, **plan: Any) -> str:
    rollout_id = books.start(**{"steps": STEPS, **plan})
    books.follow()
    books.follow()
    return rollout_id


def now_ns(books: Books) -> int:
    return int(books.wall_s * S)


def drift_of(books: Books, rollout_id: str) -> dict[str, Any]:
    (found,) = (each for each in observation.evidence(books.find(rollout_id)) if each["signal"] == "drift")
    return found


# -- what it means ------------------------------------------------------------------------------------


def test_an_alarm_is_told_with_its_column_effect_q_and_windows() -> None:
    found = finding(beside(alarm(), alarm("age", 0.2, role="input"), alarm("b"), alarm("c"), alarm("d")), "1", 0)
    assert found["tripped"]
    assert found["text"] == (
        "drift: score (output) is distributed otherwise than in version 1 at the same time: effect 0.31, q 2e-12, "
        "in 2 of 3 windows (300 rows against 280); also age, b, c and 1 more"
    )
    assert [column["name"] for column in found["columns"]] == ["score", "age", "b", "c", "d"]
    assert found["columns"][0]["prediction_ids"] == ("p1",)


def test_alarms_that_need_a_window_from_before_say_nothing() -> None:
    found = finding(beside(alarm(since_ns=99), alarm("age", 0.2, role="input", since_ns=100)), "1", 100)
    assert [column["name"] for column in found["columns"]] == ["age"]
    assert found["text"].startswith("drift: age (feature) ")
    assert not finding(beside(alarm(since_ns=99)), "1", 100)["tripped"]


def test_what_is_not_known_yet_is_said() -> None:
    for unknown in (None, beside(alarm(), baseline="0")):
        found = finding(unknown, "1", 0)
        assert not found["tripped"]
        assert found["text"] == "drift: the monitor has not put the candidate beside version 1 yet"
    assert finding(beside(), "1", 0)["text"] == (
        "drift: none of 5 columns drifted (300 rows, 280 of version 1 at the same time); "
        "no column drifted in 2 finished windows yet"
    )


def test_reports_are_read_from_drift_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reports = DriftReports(tmp_path)
    assert reports.of("iris", "2") is None
    top = (TopFeature("age", 0.1),)
    told = Alarm("score", "output", 2, 3, 7, 9, 280, 300, "ks", 0.4, 1e-13, 2e-12, 0.31, "", top, ("p1",), 5)
    report = BesideReport("1", "drifted", "1 of 5 columns drifted", 300, 280, 1, 2, (), (told,), ("age",))
    one = VersionReport("1", "d", "stable", "", 500, 1, 2, 500, 500, (), (told,))
    two = dataclasses.replace(one, version="2", beside=report)
    document = DriftDocument("iris", 0.0, 1000, Rules(100, 0.05, 0.08), (one, two), AlarmRule(2, 3))
    (tmp_path / "iris.json").write_bytes(document.to_json())
    assert reports.of("iris", "1") is None  # its own alarm blames the traffic, or itself, but is no comparison
    found = reports.of("iris", "2")
    assert found is not None
    assert (found.baseline, found.rows, found.baseline_rows, found.needed) == ("1", 300, 280, 2)
    assert finding(found, "1", 5)["tripped"]
    assert not finding(found, "1", 6)["tripped"]
    told_less = b'"baseline": "1", "reason": "", "window_rows": 1, "baseline_rows": 1, "alarms": [{"name": "a"}]'
    broken = [b"", b"[]", b'"beside": {}', b'"beside": {%s}' % told_less]
    broken[2:] = [
        b'{"alarm_rule": {"drifted": 2}, "versions": [{"version": "2", %s}]}' % beside for beside in broken[2:]
    ]
    for raw in broken:  # it is warned of once each, and no rollout stands still for it
        (tmp_path / "iris.json").write_bytes(raw)
        for _ in range(3):
            assert reports.of("iris", "2") is None
    assert caplog.text.count("cannot be read") == len(broken)


# -- in a rollout -------------------------------------------------------------------------------------


def test_an_alarm_pauses_a_rollout_and_is_shown(books: Books) -> None:
    rollout_id = progressing(books)
    assert "has not put the candidate beside version 1" in drift_of(books, rollout_id)["text"]
    books.beside = beside(alarm(since_ns=now_ns(books)))
    books.tick()
    assert books.phase(rollout_id) == "paused guardrail"
    assert books.find(rollout_id).state.why.startswith("drift: score (output) ")
    shown = drift_of(books, rollout_id)
    assert (shown["tripped"], shown["action"], shown["e_value"]) == (True, "pause", None)
    assert observation.evidence(books.find(rollout_id))[0] == shown  # what tripped comes first
    assert observation.promotion(books.find(rollout_id)) is not None
    books.restart()
    for _ in range(3):
        books.tick()
    assert books.verbs(rollout_id) == ["start", "step", "pause"]  # once, also over a restart
    assert drift_of(books, rollout_id)["tripped"]


def test_who_resumes_has_seen_the_alarm_and_only_windows_from_then_on_count(books: Books) -> None:
    rollout_id = progressing(books)
    books.beside = beside(alarm(since_ns=now_ns(books)))
    books.tick()
    books.do(rollout_id, "resume")
    books.tick(6.0)
    assert books.phase(rollout_id) == "progressing"
    assert not drift_of(books, rollout_id)["tripped"]
    books.restart()
    books.tick()
    assert books.phase(rollout_id) == "progressing"
    books.beside = beside(alarm(since_ns=now_ns(books)))
    books.tick()
    assert books.phase(rollout_id) == "paused guardrail"


def test_an_alarm_from_before_the_rollout_does_not_count(books: Books) -> None:
    books.beside = beside(alarm(since_ns=now_ns(books) - 1000 * S))  # of a rollout of the same version that was aborted
    rollout_id = progressing(books)
    books.tick()
    assert books.phase(rollout_id) == "progressing"
    assert not drift_of(books, rollout_id)["tripped"]


@pytest.mark.parametrize(
    ("signals", "phase", "verbs"),
    [
        ({"drift": {"action": "rollback"}}, "aborting", ["start", "step", "abort"]),
        ({"drift": {"action": "notify"}}, "progressing", ["start", "step", "finding"]),
        ({"drift": None}, "progressing", ["start", "step"]),
    ],
)
def test_a_plan_says_what_is_done_about_it(books: Books, signals: dict[str, Any], phase: str, verbs: list[str]) -> None:
    rollout_id = progressing(books, judge={"signals": signals})
    books.beside = beside(alarm(since_ns=now_ns(books)))
    for _ in range(3):
        books.tick()
    assert books.phase(rollout_id) == phase
    assert books.verbs(rollout_id) == verbs
    looked_at = signals["drift"] is not None
    assert any(each["signal"] == "drift" for each in observation.evidence(books.find(rollout_id))) == looked_at


def test_who_previews_a_version_has_chosen_to_and_blames_nobody(books: Books) -> None:
    rollout_id = progressing(books, strategy="bluegreen", steps=[], min_time_s=10_000)
    books.beside = beside(alarm(since_ns=now_ns(books)))
    books.tick()
    assert books.phase(rollout_id) == "progressing"
    assert observation.evidence(books.find(rollout_id)) == []
