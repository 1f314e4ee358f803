"""Webhooks of a real control process: made, looked at, and given something to tell."""

from __future__ import annotations

from typing import Any

from tests.control.process import ControlProcess, route

WEBHOOKS = "/admin/v1/webhooks"


def add(control: ControlProcess, url: str, *events: str, **more: str) -> dict[str, Any]:
    """A new webhook; its id and secret."""
    body = {"url": url, **({"events": list(events)} if events else {}), **more}
    reply = control.client.post(WEBHOOKS, json=body)
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def remove(control: ControlProcess, webhook: dict[str, Any]) -> None:
    assert control.client.delete(f"{WEBHOOKS}/{webhook['id']}").status_code == 204


def listed(control: ControlProcess, webhook: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in control.client.get(WEBHOOKS).json()["webhooks"] if each["id"] == webhook["id"]
    )
    return found


def progress(control: ControlProcess, webhook: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = listed(control, webhook)["progress"]
    return found


def audit(control: ControlProcess, verb: str, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    rows = control.client.get("/admin/v1/audit").json()["rows"]
    return [row for row in rows if row["verb"] == verb and row["target"] == f"webhook:{webhook['id']}"]


def change_flags(control: ControlProcess, name: str, count: int) -> list[int]:
    """Write *count* flags of their own; returns the seqs of their audit rows."""
    for number in range(count):
        assert control.put(f"{name}{number}.route", route()).status_code == 201
    rows = control.client.get("/admin/v1/audit", params={"limit": 10_000}).json()["rows"]
    found = [row["seq"] for row in rows if row["target"].startswith(name)]
    assert len(found) == count
    return found
