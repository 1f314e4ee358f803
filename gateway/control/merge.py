"""JSON merge patches (RFC 7396), and what a change does to a document, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def merge(target: Any, patch: Any) -> Any:
    """*target* with *patch* merged into it: null removes, objects merge, all else replaces. Changes neither."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def differences(before: Any, after: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Where two documents differ: ``{"path": JSON pointer, "before", "after"}``; what is not there has no key."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            place = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            if name not in before:
                yield {"path": place, "after": after[name]}
            elif name not in after:
                yield {"path": place, "before": before[name]}
            else:
                yield from differences(before[name], after[name], place)
    elif before != after:
        yield {"path": path, "before": before, "after": after}
