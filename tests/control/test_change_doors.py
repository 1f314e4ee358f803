"""Approvals through the doors of a real control process: proposed, approved, raced, killed, and broken open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.control.approvals import KIND
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail
from tests import builders
from tests.control.process import ControlProcess, route, split
from tests.live import SettingsTable, eventually

ROUTE = "/admin/v1/flags/iris.route"
REASON = {"x-change-reason": "a test"}


class Team:
    """A control process with a model of high stakes, and people with tokens of their own."""

    def __init__(self, control: ControlProcess) -> None:
        self.control = control
        self._clients: list[httpx.Client] = []
        builders.write_package(control.models, builders.classifier("iris", "1"), card={"stakes": "high"})
        builders.write_package(control.models, builders.classifier("iris", "2"))
        if control.put("iris.route", route()).status_code == 412:  # seeded meanwhile
            assert control.put("iris.route", route(), etag="*").status_code == 200

    def person(self, name: str, scope: str) -> httpx.Client:
        made = self.control.client.post("/admin/v1/tokens", json={"name": name, "scope": scope})
        assert made.status_code == 201, made.text
        client = self.control.client_as(made.json()["token"])
        self._clients.append(client)
        return client

    def raise_to(self, canary: int, by: httpx.Client, **headers: str) -> httpx.Response:
        based_on = {"if-match": self.control.etag("iris.route"), **REASON, **headers}
        return by.put(ROUTE, json=route(targeting=split(canary)), headers=based_on)

    def propose(self, canary: int, by: httpx.Client) -> dict[str, Any]:
        reply = self.raise_to(canary, by)
        assert reply.status_code == 202, reply.text
        change: dict[str, Any] = reply.json()
        assert reply.headers["location"] == f"/admin/v1/changes/{change['id']}"
        return change

    def targeting(self) -> Any:
        return self.control.client.get(ROUTE).json().get("targeting")

    def verbs(self) -> list[str]:
        rows = self.control.client.get("/admin/v1/audit", params={"limit": 10_000}).json()["rows"]
        return [row["verb"] for row in rows if row["verb"].split(".")[0] in ("flag", "change", "alarm")]

    def close(self) -> None:
        for client in self._clients:
            client.close()


def decide(by: httpx.Client, change: Mapping[str, Any], verb: str, **query: str) -> httpx.Response:
    return by.post(f"/admin/v1/changes/{change['id']}:{verb}", headers=REASON, params=query)


def team_of(models: Path, state: Path, **approvals: float) -> Iterator[Team]:
    settings: SettingsTable = {"approvals": approvals}
    with ControlProcess(models, state, settings=settings) as control:
        team = Team(control)
        yield team
        team.close()


@pytest.fixture
def team(models: Path, state: Path) -> Iterator[Team]:
    yield from team_of(models, state)


@pytest.fixture
def strict(models: Path, state: Path) -> Iterator[Team]:
    yield from team_of(models, state, required=2)


@pytest.fixture
def hasty(models: Path, state: Path) -> Iterator[Team]:
    yield from team_of(models, state, expires_s=1)


def code(reply: httpx.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    return str(reply.json()["code"])


def test_a_change_waits_until_somebody_else_approves_exactly_it(team: Team) -> None:
    ada, bob = team.person("ada", "operator"), team.person("bob", "approver")
    change = team.propose(10, ada)
    assert (change["model"], change["target"], change["actor"], change["state"]) == (
        "iris",
        "iris.route",
        "ada",
        "open",
    )
    assert change["diff"] == [{"path": "/targeting", "after": split(10)}]
    assert change["approvals"] == []
    assert team.targeting() is None
    assert team.propose(10, ada)["id"] == change["id"]
    listed = ada.get("/admin/v1/changes", params={"state": "open"}).json()["changes"]
    assert [each["id"] for each in listed] == [change["id"]]
    assert code(decide(bob, change, "approve", digest="0" * 64), 412) == "revision_conflict"
    approved = decide(bob, change, "approve", digest=change["digest"])
    assert approved.status_code == 200, approved.text
    assert approved.json()["state"] == "applied"
    assert team.targeting() == split(10)
    row = team.control.client.get(f"{ROUTE}/history").json()["rows"][0]
    assert (row["actor"], row["verb"]) == ("bob", "flag.put.approved")
    assert "of ada, approved by bob" in row["reason"]
    assert bob.get(f"/admin/v1/changes/{change['id']}").json()["approvals"][0]["actor"] == "bob"
    assert code(bob.get("/admin/v1/changes/none"), 404) == "unknown_change"
    assert code(decide(bob, change, "wave"), 400) == "invalid_input"
    assert code(decide(bob, change, "approve"), 409) == "change_refused"


def test_nobody_approves_his_own_change_and_operators_none(team: Team) -> None:
    ada = team.person("ada", "approver")
    change = team.propose(10, ada)
    assert code(decide(ada, change, "approve"), 403) == "forbidden"
    assert code(decide(team.person("ada", "approver"), change, "approve"), 403) == "forbidden"  # another token
    assert code(decide(team.person("Ada", "admin"), change, "approve"), 403) == "forbidden"
    operator = team.person("cy", "operator")
    assert code(decide(operator, change, "approve"), 403) == "forbidden"
    assert code(decide(operator, change, "reject"), 403) == "forbidden"
    assert code(decide(operator, change, "acknowledge"), 403) == "forbidden"
    assert code(decide(team.person("eve", "viewer"), change, "apply"), 403) == "forbidden"
    assert code(decide(operator, change, "apply"), 409) == "change_refused"
    assert team.targeting() is None
    assert decide(ada, change, "reject").json()["state"] == "rejected"  # withdrawn
    assert "change.withdraw" in team.verbs()


def test_less_exposure_and_models_of_low_stakes_wait_for_nobody(team: Team) -> None:
    ada = team.person("ada", "operator")
    decide(team.person("bob", "approver"), team.propose(10, ada), "approve")
    assert team.raise_to(5, ada).status_code == 200
    assert team.control.patch("iris.route", {"state": "DISABLED"}).status_code == 200
    assert team.control.patch("iris.route", {"state": "ENABLED"}).status_code == 202
    builders.write_package(team.control.models, builders.classifier("wine", "1"), card={"stakes": "low"})
    team.control.put("wine.route", route())
    assert team.control.patch("wine.route", {"targeting": split(50)}).status_code == 200


def test_a_dry_run_tells_how_many_have_to_approve(strict: Team) -> None:
    tried = strict.control.patch("iris.route", {"targeting": split(10)}, dryRun="true")
    assert tried.status_code == 200
    assert tried.json()["approvals"] == {"iris.route": 2}
    assert strict.control.patch("iris.route", {}, dryRun="true").json()["approvals"] == {}
    assert strict.control.client.get("/admin/v1/changes").json()["changes"] == []


def test_two_approve_at_the_same_time_and_it_is_applied_once(strict: Team) -> None:
    ada = strict.person("ada", "operator")
    approvers = [strict.person(f"approver{i}", "approver") for i in range(4)]
    change = strict.propose(10, ada)
    replies: list[httpx.Response] = []
    gate = threading.Barrier(len(approvers))

    def approve(by: httpx.Client) -> None:
        gate.wait()
        replies.append(decide(by, change, "approve"))

    threads = [threading.Thread(target=approve, args=(by,)) for by in approvers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = sorted(reply.json().get("state", reply.json().get("code")) for reply in replies)
    assert states == ["applied", "change_refused", "change_refused", "open"]
    found = ada.get(f"/admin/v1/changes/{change['id']}").json()
    assert len(found["approvals"]) == 2
    assert strict.targeting() == split(10)
    verbs = strict.verbs()
    assert (verbs.count("change.approve"), verbs.count("change.apply"), verbs.count("flag.put.approved")) == (2, 1, 1)


def test_an_approval_that_comes_too_late_changes_nothing(hasty: Team) -> None:
    bob = hasty.person("bob", "approver")
    change = hasty.propose(10, hasty.person("ada", "operator"))
    eventually(lambda: bob.get(f"/admin/v1/changes/{change['id']}").json()["state"] == "expired", "it expires")
    assert code(decide(bob, change, "approve"), 409) == "change_refused"
    assert hasty.targeting() is None
    assert "change.expire" in hasty.verbs()


def test_an_edit_in_between_voids_the_proposal_and_its_approvals(strict: Team) -> None:
    ada, bob, cy = (strict.person(name, "approver") for name in ("ada", "bob", "cy"))
    change = strict.propose(10, ada)
    assert decide(bob, change, "approve").json()["state"] == "open"
    strict.control.patch("iris.route", {"metadata": {"owner": "risk"}})
    late = decide(cy, change, "approve")
    assert code(late, 412) == "revision_conflict"
    assert "is void: iris.route is at revision" in late.json()["detail"]
    assert late.headers["etag"] == strict.control.etag("iris.route")
    assert strict.targeting() is None


def test_what_is_approved_while_a_version_is_not_warm_waits_and_is_applied_later(team: Team) -> None:
    ada, bob = team.person("ada", "operator"), team.person("bob", "approver")
    change = team.propose(10, ada)
    team.control.write_status({"iris": {"1": "warm", "2": "loading: 3 s so far"}})
    approved = decide(bob, change, "approve").json()
    assert approved["state"] == "approved"
    assert "version 2" in approved["state_reason"]
    team.control.write_status({"iris": {"1": "warm", "2": "loading: 4 s so far"}})
    assert code(decide(ada, change, "apply"), 409) == "version_not_warm"
    team.control.write_status({"iris": {"1": "warm", "2": "warm"}})
    assert decide(ada, change, "apply").json()["state"] == "applied"
    assert team.targeting() == split(10)


def test_kill_9_between_and_during_approvals_leaves_all_of_a_decision_or_nothing(strict: Team) -> None:
    control = strict.control
    ada = strict.person("ada", "operator")
    approvers = [strict.person(name, "approver") for name in ("bob", "cy")]
    approvers[1].timeout = httpx.Timeout(2.0)  # a request that nobody took before the kill
    for canary in (10, 20, 30):
        change = strict.propose(canary, ada)
        assert decide(approvers[0], change, "approve").status_code == 200
        killing = threading.Thread(target=control.kill)
        killing.start()
        answered = 0
        with contextlib.suppress(httpx.TransportError):
            answered = decide(approvers[1], change, "approve").status_code
        killing.join()
        control.start()

        def seen(change: dict[str, Any] = change, canary: int = canary) -> str:
            """The state of the change, once the route says the same; a request in the backlog may come only now."""
            found = ada.get(f"/admin/v1/changes/{change['id']}").json()
            applied = strict.targeting() == split(canary)
            assert (found["state"] == "applied") == applied == (len(found["approvals"]) == 2)
            return str(found["state"])

        state = eventually(seen, "change and route agree")
        assert state == "applied" or answered != 200
        if state != "applied":
            decide(approvers[1], change, "approve")
            assert eventually(seen, "change and route agree") == "applied"
    store = SqliteStore(control.state / "flags.sqlite", read_only=True)
    assert {record.body["state"] for record in store.records(KIND)} == {"applied"}
    verify_trail(store)
    store.close()


def test_the_glass_is_broken_with_a_reason_an_alarm_and_a_review(team: Team) -> None:
    ada = team.person("ada", "operator")
    assert code(team.raise_to(10, ada, **{"x-break-glass": "yes"}), 400) == "invalid_input"
    assert code(team.raise_to(10, ada, **{"x-break-glass": "true", "x-change-reason": ""}), 400) == "invalid_input"
    viewer = team.person("eve", "viewer")
    assert code(team.raise_to(10, viewer, **{"x-break-glass": "true"}), 403) == "forbidden"
    done = team.raise_to(10, ada, **{"x-break-glass": "true", "x-change-reason": "the old one fails"})
    assert done.status_code == 200, done.text
    assert team.targeting() == split(10)
    assert team.verbs()[-3:] == ["flag.put.break_glass", "change.break_glass", "alarm.break_glass"]
    assert "glass broken" in team.control.log
    assert '"level": "error"' in team.control.log.lower() or "ERROR" in team.control.log
    page = team.control.client.get("/metrics").text
    assert "sluicegate_break_glass_total 1.0" in page
    (change,) = ada.get("/admin/v1/changes", params={"state": "break_glass"}).json()["changes"]
    assert change["reason"] == "the old one fails"
    assert code(decide(team.person("ada", "approver"), change, "acknowledge"), 403) == "forbidden"
    assert decide(team.person("bob", "approver"), change, "acknowledge").json()["state"] == "reviewed"
    team.control.stop()
    team.control.start()
    assert ada.get("/admin/v1/changes", params={"state": "break_glass"}).json()["changes"] == []
