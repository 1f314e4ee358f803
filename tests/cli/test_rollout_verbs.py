"""``sluicegate rollout`` and its doors against a real control process: every verb, also where it makes no sense."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.flags.audit import Author
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import RecordWrite
from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route
from tests.live import eventually

WHY = ("--reason", "a test")


@pytest.fixture
def control(models: Path, state: Path) -> Iterator[ControlProcess]:
    with ControlProcess(models, state) as process:
        process.put("iris.route", route(stable="1"))
        yield process


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    """One that the requests which it refuses can share."""
    root = tmp_path_factory.mktemp("control")
    (root / "models").mkdir()
    with ControlProcess(root / "models", root / "state") as process:
        process.put("iris.route", route(stable="1"))
        yield process


def phase_is(terminal: Terminal, control: ControlProcess, name: str, phase: str) -> bool:
    control.write_status({"iris": {"1": "warm", "2": "warm"}})
    return bool(terminal.json("rollout", "status", name)["phase"] == phase)


def test_every_verb_says_why_where_it_makes_no_sense(terminal: Terminal, control: ControlProcess) -> None:
    assert "no rollout of 'iris'" in terminal.fails("rollout", "status", "iris")
    assert "no rollout 'iris-7'" in terminal.fails("rollout", "abort", "iris-7", *WHY)
    terminal.ok("rollout", "start", "iris", "2", "--steps", "5:3600:10", *WHY)
    assert "only one that is progressing" in terminal.fails("rollout", "pause", "iris", *WHY)
    assert "only one that is paused" in terminal.fails("rollout", "resume", "iris", *WHY)
    assert "no traffic yet" in terminal.fails("rollout", "promote", "iris", "--full", *WHY)
    assert "rollback undoes a promotion" in terminal.fails("rollout", "rollback", "iris", *WHY)
    assert "abort it first" in terminal.fails("rollout", "retry", "iris", *WHY)
    assert "needs no approval" in terminal.fails("rollout", "approve", "iris", *WHY)
    eventually(lambda: phase_is(terminal, control, "iris-1", "progressing"), "the candidate is warm")
    assert "abort it first" in terminal.fails("flags", "set", "iris.route", "canary=50", *WHY)
    terminal.ok("rollout", "pause", "iris", *WHY)
    terminal.ok("rollout", "resume", "iris", *WHY)
    terminal.ok("rollout", "abort", "iris", *WHY)
    assert "nothing to abort" in terminal.fails("rollout", "abort", "iris", *WHY)
    assert "iris-1" in terminal.ok("rollout", "status")


def test_a_rollout_that_cannot_be_read_is_told_of_and_aborted(terminal: Terminal, control: ControlProcess) -> None:
    terminal.ok("rollout", "start", "iris", "2", *WHY)
    with contextlib.closing(SqliteStore(control.state / "flags.sqlite")) as store:
        (record,) = store.records("rollout")
        body = {**record.body, "plan": {"strategy": "of a later gateway"}}
        writes = [RecordWrite("rollout", record.id, body)]
        store.commit(author=Author("later"), verb="rollout.save", reason="", records=writes)
    assert "iris-1 cannot be read" in terminal.ok("rollout", "status")
    assert "cannot be read by this gateway" in terminal.fails("rollout", "status", "iris")
    assert "cannot be read by this gateway" in terminal.fails("rollout", "pause", "iris", *WHY)
    assert "the route is what it was before" in terminal.ok("rollout", "abort", "iris", *WHY)
    assert "cannot be read" not in terminal.ok("rollout", "status")
    terminal.ok("rollout", "start", "iris", "2", *WHY)
    assert terminal.json("rollout", "status", "iris")["id"] == "iris-2"


@pytest.mark.parametrize("steps", ["5:60:inf", "5:60:nan", "nan", "5:inf", "5:60:10.5", "5:60:10:1", "x", ""])
def test_steps_that_are_no_numbers_are_refused_before_anything_is_asked(
    untouched: ControlProcess, capsys: pytest.CaptureFixture[str], steps: str
) -> None:
    refused = Terminal(capsys).usage("rollout", "start", "iris", "2", f"--steps={steps}", "--url", untouched.url, *WHY)
    assert "--steps" in refused


def test_a_model_whose_name_looks_like_a_rollout_is_found(terminal: Terminal, control: ControlProcess) -> None:
    control.put("iris-2.route", route(stable="1"))
    terminal.ok("rollout", "start", "iris-2", "2", *WHY)
    assert terminal.json("rollout", "status", "iris-2")["id"] == "iris-2-1"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("models/iris/rollouts", b"[]", 400),
        ("models/iris/rollouts", b'{"strategy": "canary", "version": "2", "steps": []}', 400),
        ("models/iris/rollouts", b'{"strategy": "canary", "version": "2", "steps": [{"weight_percent": 1e308}]}', 400),
        ("models/iris/rollouts", b'{"strategy": "canary", "version": "2", "judge": {"alpha": 1e-320}}', 400),
        ("models/iris/rollouts", b'{"strategy": "canary", "version": 2}', 400),
        ("models/iris/rollouts", b'{"strategy": "canary", "version": "../../etc"}', 400),
        ("models/none/rollouts", b'{"strategy": "canary", "version": "2"}', 404),
        ("rollouts/iris-1:explode", b"", 400),
        ("rollouts/iris-1:pause:abort", b"", 404),
        ("rollouts/%2e%2e:abort", b"", 404),
    ],
)
def test_bad_requests_are_refused_and_control_lives(
    untouched: ControlProcess, path: str, body: bytes, status: int
) -> None:
    answer = untouched.client.post(f"/admin/v1/{path}", content=body, headers={"x-change-reason": "a test"})
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert untouched.client.get("/admin/v1/rollouts").json() == {"rollouts": []}
