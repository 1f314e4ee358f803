"""``sluicegate rollout``: what is typed becomes a plan, and what comes back says where it stands and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import classifier, write_package
from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess
from tests.live import eventually

MODELS = ("iris", "wine", "beer", "rice", "oats", "corn", "bank")  # one a test, since a route has one rollout at a time
CARDS = {"bank": {"stakes": "high"}}


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    root = tmp_path_factory.mktemp("control")
    for model in MODELS:
        write_package(root / "models", classifier(model, "1"), card=CARDS.get(model))
    with ControlProcess(root / "models", root / "state") as process:  # which gives each a route to version 1
        for model in MODELS:
            write_package(root / "models", classifier(model, "2"), card=CARDS.get(model))
        yield process


def test_a_dry_run_shows_the_stages_and_what_the_plan_can_see(terminal: Terminal) -> None:
    arguments = ("rollout", "start", "iris", "2", "--steps", "1:60:100,50:300:2000", "--dry-run")
    stages, _, foresight = terminal.ok(*arguments).partition("errors: ")
    assert [line.split(":")[0].strip() for line in stages.splitlines()[1:]] == ["declared", "1 %", "50 %", "promoted"]
    assert "in 9 of 10 rollouts" in foresight
    plan = terminal.json(*arguments)["plan"]
    assert plan["steps"][1] == {"weight_percent": 50, "min_time_s": 300, "min_requests": 2000}
    assert "no rollout of 'iris' yet" in terminal.fails("rollout", "status", "iris")


def test_a_rollout_is_started_looked_at_and_aborted_with_the_reason_that_was_given(terminal: Terminal) -> None:
    assert "see `sluicegate rollout status wine-1`" in terminal.ok("rollout", "start", "wine", "2", "--reason", "w 48")
    status = terminal.ok("rollout", "status", "wine")
    assert status.startswith("wine-1: canary of version 2 as canary, declared\n")
    assert "  quiet     errors: nothing to compare yet" in status
    assert "not to be promoted yet: 0 of 500 canary requests" in status
    assert "the candidate has no traffic yet" in terminal.fails("rollout", "promote", "wine")
    assert "abort it first" in terminal.fails("rollout", "start", "wine", "2", "--reason", "again")
    aborted = terminal.ok("rollout", "abort", "wine", "--reason", "support calls").splitlines()
    assert aborted[2].startswith("why     aborted by hand: support calls")
    assert not any(line.startswith(("judge", "  quiet")) for line in aborted)
    assert "support calls" in terminal.ok("rollout", "status")
    assert terminal.json("rollout", "status", "wine")["not_yet_promotable"] is None


def test_a_strategy_that_splits_no_traffic_says_nothing_of_a_judge(terminal: Terminal) -> None:
    terminal.ok("rollout", "start", "beer", "2", "--strategy", "shadow", "--reason", "look first")
    assert "judge" not in terminal.ok("rollout", "status", "beer")
    found = terminal.json("rollout", "status", "beer")
    assert (found["judge"], found["not_yet_promotable"]) == ([], None)


def test_a_rollout_of_high_stakes_says_who_has_to_do_what(
    control: ControlProcess, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("rollout", "start", "bank", "2")
    assert "waits for approval by one person" in terminal.ok(*start, "--dry-run")
    assert "somebody else runs `sluicegate rollout approve bank-1`" in terminal.ok(*start, "--reason", "x")
    assert "is the author" in terminal.fails("rollout", "approve", "bank")
    terminal.ok("rollout", "abort", "bank")
    eventually(lambda: terminal.json("rollout", "status", "bank")["phase"] == "rolled_back", "the route is back")
    assert "`sluicegate changes acknowledge " in terminal.ok(*start, "--reason", "x", "--break-glass")
    terminal.ok("rollout", "abort", "bank")
    monkeypatch.setenv("SLUICEGATE_TOKEN", terminal.ok("token", "create", "op", "--scope", "operator").strip())
    assert "`sluicegate token create NAME --scope approver`" in terminal.fails("rollout", "approve", "bank")


def test_arguments_may_stand_behind_options(terminal: Terminal) -> None:
    started = terminal.json("rollout", "start", "rice", "--variant", "beta", "2", "--reason", "x")
    assert (started["version"], started["variant"]) == ("2", "beta")
    flag = terminal.json("flags", "set", "oats", "--declare", "canary=2", "canary=0", "--reason", "x")
    assert flag["targeting"] == {"fractional": [["stable", 10000]]}
    assert "unrecognized arguments: 3" in terminal.usage("rollout", "start", "corn", "1", "--dry-run", "3")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rollout", "start", "corn"), "which version?"),
        (("rollout", "start", "corn", "2"), "--reason is needed"),
        (("rollout", "start", "corn", "2", "--steps", "5:x", "--reason", "x"), "PERCENT:SECONDS:REQUESTS"),
        (("rollout", "start", "corn", "2", "--strategy", "blue", "--reason", "x"), "invalid choice"),
        (("rollout", "status", "corn", "extra"), "unrecognized arguments: extra"),
        (("rollout", "report"), "ID"),
    ],
)
def test_usage_errors_exit_with_2(terminal: Terminal, arguments: tuple[str, ...], told: str) -> None:
    assert told in terminal.usage(*arguments)


def test_what_cannot_be_started_says_why(terminal: Terminal, tmp_path: Path) -> None:
    start = ("rollout", "start", "corn")
    assert "there are versions 1, 2" in terminal.fails(*start, "9", "--reason", "x")
    assert "answers with already" in terminal.fails(*start, "1", "--reason", "x")
    assert "more than in the step before" in terminal.fails(*start, "2", "--steps", "50,10", "--reason", "x")
    plan = tmp_path / "plan.json"
    plan.write_text('{"version": "2", "judge": {"alpah": 1}}')
    assert "policy has no 'alpah'" in terminal.fails(*start, "--plan", str(plan), "--reason", "x")
    plan.write_text("[")
    assert "is not valid JSON" in terminal.fails(*start, "--plan", str(plan), "--reason", "x")
    assert "needs no approval" in terminal.fails("rollout", "approve", "rice")
