"""What blocks a change of flags that is valid in itself: the rules, each of which names the flag and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gateway.control.status import FAILED, QUARANTINED, WorkerStatus, not_warm
from gateway.errors import ChangeRefused, FlagsFollowFile, InvalidFlag, VersionNotWarm
from gateway.flags.audit import targets_of
from gateway.flags.compile import Route, compile_route
from gateway.flags.document import ROUTE, Flag, FlagDocument
from gateway.flags.exposure import raised
from gateway.models.source import ModelSource


@dataclass(frozen=True, slots=True)
class Blocked:
    """A rule that keeps a well-formed change of one flag from being written."""

    flag: str
    error: ChangeRefused


# Looks at what a change of the flags makes of them, and names what speaks against it. `Desk.apply` does not ask it for
# those who are in charge.
Guard = Callable[[FlagDocument, FlagDocument], Iterable[Blocked]]


def of_cold_routes(
    before: FlagDocument, after: FlagDocument, workers: Callable[[], list[WorkerStatus]]
) -> Iterator[Blocked]:
    """Versions that would gain traffic while some live worker has not warmed them."""
    routes = [flag for flag in changed_flags(before, after) if flag.kind == ROUTE]
    found: list[WorkerStatus] | None = None
    for flag in routes:
        old = _route(before.flags.get(flag.key), before.bucketing)
        versions = raised(old, compile_route(flag.model, flag, after.bucketing))
        if versions:  # else nobody need be asked: a kill switch works whatever is known of the workers
            found = workers() if found is None else found
            yield from _of_cold_versions(flag.key, found, flag.model, versions)


def of_followed_file(import_file: str, before: FlagDocument, after: FlagDocument) -> Iterator[Blocked]:
    """Every part that differs, where the flags follow a file."""
    message = (
        f"the flags follow the file {import_file}: change them there. By hand only the kill switch is pulled "
        f"(the state of a route to DISABLED, and back) and caches are purged"
    )
    old, new = targets_of(before), targets_of(after)
    for target in sorted(old.keys() | new.keys()):
        if old.get(target) != new.get(target):
            yield Blocked(target, FlagsFollowFile(message))


def of_delete(flag: Flag, source: ModelSource) -> Iterator[Blocked]:
    """A route that would come back at once."""
    if flag.kind == ROUTE and source.versions().get(flag.model):
        message = (
            f"{flag.key} cannot be deleted while the models directory has packages of {flag.model!r}: it would be "
            f"given a new route to its highest version at once. Set it DISABLED, or remove the packages first"
        )
        yield Blocked(flag.key, ChangeRefused(message))


def changed_flags(before: FlagDocument, after: FlagDocument) -> Iterator[Flag]:
    """The flags of *after* that are new or changed."""
    for key, flag in after.flags.items():
        old = before.flags.get(key)
        if old is None or old.revision != flag.revision:
            yield flag


def _of_cold_versions(key: str, workers: list[WorkerStatus], model: str, versions: Iterable[str]) -> Iterator[Blocked]:
    blocking = not_warm(workers, model, versions)
    if blocking:
        first = blocking[0]
        more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
        where = f" of {first['host']}" if "host" in first else ""
        because = f": {first['reason']}" if first["reason"] else ""
        todo = "declare it at weight 0 and wait until every worker reports it warm"
        if first["state"] == FAILED:
            todo = "mend its package, which is tried again when its files change, or declare another version"
        elif first["state"] == QUARANTINED:
            lift = f"sluicegate models quarantine lift {model} {first['version']}"
            todo = f"put another package in its place, or lift it with `{lift}`"
        message = (
            f"version {first['version']} of {model!r} is {first['state']} on worker {first['worker']}"
            f"{where}{because}{more}; {todo}"
        )
        yield Blocked(key, VersionNotWarm(message, blocking=blocking))


def _route(flag: Flag | None, bucketing: str) -> Route | None:
    """The route before a change; a stored flag that does not compile serves nobody."""
    try:
        return None if flag is None else compile_route(flag.model, flag, bucketing)
    except InvalidFlag:
        return None
