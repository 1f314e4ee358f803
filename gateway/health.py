"""How the children of a gateway are: one small document, written by the supervisor, read by whoever is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEALTH_FILE = "supervisor.json"  # in the run directory


def read(run_dir: Path) -> Mapping[str, Any]:
    """The document as it is now; empty if there is none. Blocks for as long as a small file takes."""
    try:
        found: Mapping[str, Any] = json.loads((run_dir / HEALTH_FILE).read_bytes())
        return found
    except (OSError, ValueError):
        return {}


def is_ready(document: Mapping[str, Any]) -> bool:
    """Whether the gateway should get traffic: it is not stopping, and one of its workers is ready.

    One that has no workers is ready if all its processes are; the exporter, which tells this, does not count.
    """
    children = [child for child in document.get("children", ()) if child["name"] != "exporter"]
    workers = [child["is_ready"] for child in children if child["name"].startswith("worker-")]
    up = any(workers) if workers else bool(children) and all(child["is_ready"] for child in children)
    return up and not document.get("is_stopping")


def complaints(document: Mapping[str, Any]) -> list[str]:
    """What is wrong, a sentence each: children that die again and again, a restart that was stopped."""
    found = [
        f"{child['name']} died {child['deaths_in_a_row']} times in a row"
        for child in document.get("children", ())
        if child["is_crash_looping"]
    ]
    restart = document.get("restart", {})
    if restart.get("state") in ("stopped", "refused"):
        found.append(f"the restart was {restart['state']}: {restart['why']}")
    return found
