"""What a file of flags has the last word on, and what hands may still do; pure, no file is read here.

The file has the last word on flags, with three exceptions. A route that was killed by hand stays DISABLED until the
file says so too or it is enabled by hand; notes of purged caches stay; and a route that the file does not name stays as
long as there are packages of its model, which would be given a new one at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from gateway.flags.document import (
    CACHE,
    DISABLED,
    ENABLED,
    PURGED,
    ROUTE,
    Flag,
    FlagDocument,
    Json,
    purges,
)

KILLED = "killed"  # metadata of a route whose kill switch was pulled by hand


def merged(in_force: FlagDocument, file: FlagDocument, models: Collection[str]) -> FlagDocument:
    """The document that *file* asks for. models: those that have packages."""
    flags: dict[str, Flag] = {}
    for key, flag in file.flags.items():
        flags[key] = _with_marks(flag, in_force.flags.get(key))
    for key, flag in in_force.flags.items():
        if key in flags:
            continue
        if flag.kind == ROUTE and flag.model in models:
            flags[key] = dataclasses.replace(flag, evaluators=file.evaluators)
        elif flag.kind == CACHE and purges(flag):
            neutral = Flag(key, ENABLED, {"on": {"enabled": True}}, "on", evaluators=file.evaluators)
            flags[key] = _with_marks(neutral, flag)
    return dataclasses.replace(file, revision=in_force.revision, flags=flags)


def declared(
    in_force: FlagDocument, wanted: FlagDocument, cold: Collection[str], held: Collection[str] = ()
) -> FlagDocument:
    """As much of *wanted* as can come before the versions of the routes *cold* are warm, without the flags *held*.

    Those flags stay as they are; cold routes only name the versions that they will need, so that workers load them. If
    named rules or the bucketing change too, all else waits with them: the old rules must keep their meaning.
    """
    if not cold and not held:
        return wanted
    shares_meaning = in_force.evaluators == wanted.evaluators and in_force.bucketing == wanted.bucketing
    base = wanted if shares_meaning else in_force
    flags = dict(base.flags)
    for key in (*cold, *held):
        before, after = in_force.flags.get(key), wanted.flags.get(key)
        kept = before if key in held or after is None else _declaring(before, after)
        if kept is None:
            flags.pop(key, None)
        else:
            flags[key] = dataclasses.replace(kept, evaluators=base.evaluators)
    return dataclasses.replace(base, flags=flags)


def still_killed(flag: Flag, in_force: Flag | None) -> Flag:
    """*flag* as who is in charge of a route wants it; that does not undo that the route was killed by hand."""
    if in_force is None or in_force.metadata.get(KILLED) is not True:
        return flag
    return dataclasses.replace(flag, state=DISABLED, metadata={**flag.metadata, KILLED: True})


def by_hand(before: Flag | None, after: Flag | None) -> Flag | None:
    """*after* with the mark of the kill switch, if that is what the change does; else None: it is not for hands."""
    if before is None or after is None or before.kind != ROUTE:
        return None
    killed = before.metadata.get(KILLED) is True
    metadata = _without_mark(before.metadata)
    same = dataclasses.replace(after, state=before.state, metadata=metadata, revision=0)
    if same != dataclasses.replace(before, metadata=metadata, revision=0):
        return None
    if _without_mark(after.metadata) != metadata:
        return None
    if before.enabled and not after.enabled:
        return dataclasses.replace(after, metadata={**metadata, KILLED: True})
    if killed and after.enabled:
        return dataclasses.replace(after, metadata=metadata)
    return None


def _with_marks(flag: Flag, in_force: Flag | None) -> Flag:
    """The file's flag with what only the gateway writes: taken from the flag in force, never from the file."""
    metadata = _without_mark({name: value for name, value in flag.metadata.items() if not _is_purge(flag, name)})
    if in_force is None:
        return dataclasses.replace(flag, metadata=metadata)
    metadata |= {name: value for name, value in in_force.metadata.items() if _is_purge(flag, name)}
    if flag.kind == ROUTE and flag.enabled and in_force.metadata.get(KILLED) is True:
        return dataclasses.replace(flag, state=DISABLED, metadata={**metadata, KILLED: True})
    return dataclasses.replace(flag, metadata=metadata)


def _declaring(before: Flag | None, wanted: Flag) -> Flag:
    """The route before the change, which names the versions of *wanted* too; a first one gives all its default."""
    if before is None:
        return dataclasses.replace(wanted, targeting=None)
    variants: dict[str, Json] = dict(before.variants)
    for name, version in wanted.variants.items():
        if version not in variants.values():
            free = (name, f"declared-{version}"[:64], *(f"declared-{i}" for i in range(len(variants) + 1)))
            variants[next(place for place in free if place not in variants)] = version
    return dataclasses.replace(before, variants=variants)


def _without_mark(metadata: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in metadata.items() if name != KILLED}


def _is_purge(flag: Flag, name: str) -> bool:
    return flag.kind == CACHE and (name == PURGED or name.startswith(f"{PURGED}."))
