"""What a dry run tells: the difference, the keys that would move, and the rules that would block the change."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.control.changes import Outcome
from gateway.control.merge import differences
from gateway.control.rules import Blocked
from gateway.errors import InvalidFlag, TargetingKeyMissing, VersionNotWarm
from gateway.flags.compile import Decision, Route, compile_route
from gateway.flags.document import ROUTE, FlagDocument

# So many made-up targeting keys are decided before and after the change, as requests without headers.
PROBE_KEYS = 10_000

_REVISION_PATH = "/metadata/revision"  # the gateway writes it; it would only hide what was asked for
_REFUSED = Decision("refused", "", "")  # the route refuses requests without what it splits by


def tried(outcome: Outcome, key: str | None) -> dict[str, Any]:
    """The reply to a dry run. key: of the one flag that was changed, None for the whole document.

    Takes about 20 ms per route that changed.
    """
    found: dict[str, Any] = {
        "dryRun": True,
        "changed": outcome.changed,
        "before": outcome.before,
        "after": outcome.after,
        "diff": [
            difference
            for difference in differences(outcome.before or {}, outcome.after or {})
            if not difference["path"].endswith(_REVISION_PATH)
        ],
        "blocked": [_told(blocked) for blocked in outcome.blocked],
        "approvals": dict(outcome.approvals),
    }
    if key is None:
        moved = {name: _moved(outcome, name) for name in sorted(outcome.base.flags)}
        return {**found, "movedKeys": {name: keys for name, keys in moved.items() if keys and keys["moved"]}}
    moved_keys = _moved(outcome, key)
    return found if moved_keys is None else {**found, "movedKeys": moved_keys}


def _told(blocked: Blocked) -> dict[str, Any]:
    error = blocked.error
    told: dict[str, Any] = {"flag": blocked.flag, "rule": error.code, "detail": str(error)}
    return {**told, "blocking": list(error.blocking)} if isinstance(error, VersionNotWarm) else told


def _moved(outcome: Outcome, key: str) -> dict[str, Any] | None:
    """Of a route that is there before and after: how many probe keys get another version, and from where to where."""
    old, new = _route(outcome.base, key), _route(outcome.document, key)
    if old is None or new is None:
        return None
    moves = Counter[tuple[Decision, Decision]]()
    if old.revision != new.revision:
        for i in range(PROBE_KEYS):
            was, will_be = _decide(old, f"probe-{i}"), _decide(new, f"probe-{i}")
            if was.version != will_be.version:
                moves[was, will_be] += 1
    places = Counter[tuple[str, str, str, str]]()
    for (was, will_be), keys in moves.items():  # reasons do not matter here
        places[was.variant, was.version, will_be.variant, will_be.version] += keys
    return {
        "of": PROBE_KEYS,
        "moved": sum(places.values()),
        "moves": [
            {"from": was, "fromVersion": old_version, "to": will_be, "toVersion": new_version, "keys": keys}
            for (was, old_version, will_be, new_version), keys in sorted(places.items())
        ],
    }


def _route(document: FlagDocument, key: str) -> Route | None:
    flag = document.flags.get(key)
    if flag is None or flag.kind != ROUTE:
        return None
    try:
        return compile_route(flag.model, flag, document.bucketing)
    except InvalidFlag:  # stored by a gateway of another age; it serves nobody
        return None


def _decide(route: Route, key: str) -> Decision:
    try:
        return route.decide(key, key, {}, "native")
    except TargetingKeyMissing:
        return _REFUSED
