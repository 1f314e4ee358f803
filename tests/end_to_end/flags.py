"""Flag changes by the admin API, as an operator's script would make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from tests.live import LiveGateway, eventually


def change(gateway: LiveGateway, key: str, patch: Mapping[str, Any], *, reason: str = "test") -> httpx.Response:
    """Merge *patch* into a flag; returns the reply, whatever it is."""
    now = gateway.control.get(f"/admin/v1/flags/{key}")
    assert now.status_code == 200, now.text
    headers = {
        "if-match": now.headers["etag"],
        "x-change-reason": reason,
        "content-type": "application/merge-patch+json",
    }
    return gateway.control.patch(f"/admin/v1/flags/{key}", content=json.dumps(patch), headers=headers)


def must_change(gateway: LiveGateway, key: str, patch: Mapping[str, Any]) -> int:
    """Merge *patch* into a flag and return the flag's new revision."""
    reply = change(gateway, key, patch)
    assert reply.status_code == 200, reply.text
    return int(reply.headers["etag"].strip('"'))


def declare(gateway: LiveGateway, model: str, variant: str, version: str) -> None:
    """Add a variant at weight 0 and wait until its version is warm in every worker."""
    must_change(gateway, f"{model}.route", {"variants": {variant: version}})
    wait_warm(gateway, model, version)


def split(canary: int) -> dict[str, Any]:
    """A targeting that gives *canary* percent to the variant of that name."""
    return {"fractional": [["canary", canary], ["stable", 100 - canary]]}


def workers_status(gateway: LiveGateway) -> list[dict[str, Any]]:
    """The status documents of all workers, read from where they write them."""
    return [json.loads(path.read_text()) for path in sorted((gateway.run_dir / "status").glob("worker-*.json"))]


def wait_warm(gateway: LiveGateway, model: str, version: str) -> None:
    """Wait until every worker reports the version warm."""

    def warm() -> bool:
        found = workers_status(gateway)
        states = [s["models"].get(model, {}).get("versions", {}).get(version, {}).get("state") for s in found]
        return bool(states) and all(state == "warm" for state in states)

    eventually(warm, f"{model}/{version} is warm in all workers", timeout_s=60)


def wait_adopted(gateway: LiveGateway, model: str, revision: int) -> None:
    """Wait until every worker has adopted that revision of the model's route."""

    def adopted() -> bool:
        found = workers_status(gateway)
        return bool(found) and all(s["models"].get(model, {}).get("adopted_revision") == revision for s in found)

    eventually(adopted, f"revision {revision} of {model} is adopted by all workers")
