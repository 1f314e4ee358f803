"""What a dry run found, in words for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.cli import remote


def print_dry_run(what: str, found: Mapping[str, Any]) -> None:
    """*found*: the control plane's reply. what: the flag's key, or what else was to be changed."""
    if not found["changed"]:
        print(f"nothing would change in {what}")
    else:
        print(f"this would change in {what}:")
    for difference in found["diff"]:
        print(f"  {remote.difference(difference)}")
    moved = found.get("movedKeys", {})
    for key, keys in ({"": moved} if "moved" in moved else moved).items():
        _print_moved_keys(f"{key}: " if key else "", keys)
    for key, number in found["approvals"].items():
        print(f"{key} waits for approval by {remote.people(number)} before it changes")
    for blocked in found["blocked"]:
        named = "" if blocked["flag"] == what else f" of {blocked['flag']}"
        print(f"blocked by {blocked['rule']}{named}: {blocked['detail']}")
        for entry in blocked.get("blocking", []):
            print(f"  {remote.blocker(entry)}")


def _print_moved_keys(of: str, found: Mapping[str, Any]) -> None:
    print(f"{of}{found['moved']} of {found['of']} targeting keys would get another version")
    for move in found["moves"]:
        was, will_be = (" ".join(filter(None, (move[end], move[f"{end}Version"]))) for end in ("from", "to"))
        print(f"  {move['keys']} from {was} to {will_be}")
