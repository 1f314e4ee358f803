"""The door to the prediction caches: answers of a model, or of one version, are forgotten while it stays served.

Workers follow nothing but the flags. So a purge is a note in the metadata of the model's cache flag, at which revision
the answers were forgotten: it reaches each worker as fast as a kill switch, and stands in the audit trail.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import OPERATOR, TokenStore
from gateway.control.changes import Desk, Outcome
from gateway.control.dryrun import tried
from gateway.control.endpoints import reply
from gateway.errors import InvalidInput, UnknownModel, UnknownVersion
from gateway.flags.audit import Author
from gateway.flags.document import CACHE, ENABLED, PURGED, FlagDocument, Json

VERB = "cache.purge"


@dataclass(frozen=True, slots=True)
class PurgeEndpoint:
    """``POST /admin/v1/models/{model}/cache:purge`` with ``{}`` or ``{"version": "2"}``."""

    desk: Desk
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [Route("/admin/v1/models/{model}/cache:purge", self.purge, methods=["POST"])]

    async def purge(self, request: Request) -> Response:
        """Forget the answers in every worker; those on their way are not kept either."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        dry_run = requests.switch(request, "dryRun")
        reason = "" if dry_run else requests.reason(request)
        body = await requests.json_object(request)
        for name in body.keys() - {"version"}:
            raise InvalidInput(name, "an unknown field", "only version")
        model, version = request.path_params["model"], body.get("version")
        if version is not None and not isinstance(version, str):
            raise InvalidInput("version", repr(version)[:80], "a version as text, or nothing for all")
        author = requests.author(request, token)
        outcome = await run_in_threadpool(
            purge, self.desk, model, version, author=author, reason=reason, dry_run=dry_run
        )
        if dry_run:
            return reply(await run_in_threadpool(tried, outcome, f"{model}.{CACHE}"))
        return reply({"model": model, "version": version, "revision": outcome.document.revision})


def purge(
    desk: Desk, model: str, version: str | None, *, author: Author, reason: str, dry_run: bool = False
) -> Outcome:
    """Have the cached answers of a version, or of all (None), forgotten. Blocks on the disk.

    Raises UnknownModel, UnknownVersion: only what the route names is held by workers.
    """

    def edit(before: Json | None) -> Json:
        document = desk.document()
        return purged(before, version, _named(document, model, version), revision=document.revision + 1)

    return desk.change_flag(
        f"{model}.{CACHE}", edit, expected_revision=None, author=author, verb=VERB, reason=reason, dry_run=dry_run
    )


def purged(flag: Json | None, version: str | None, named: Set[str], *, revision: int) -> dict[str, Any]:
    """The cache flag with the purge noted in it. named: the versions of the route; notes on others are left out."""
    flag = flag or {"state": ENABLED, "variants": {"on": {"enabled": True}}, "defaultVariant": "on"}
    kept = {name: value for name, value in flag.get("metadata", {}).items() if not name.startswith(f"{PURGED}.")}
    if version is None:
        return {**flag, "metadata": {**kept, PURGED: revision}}
    notes = {name: value for name, value in flag.get("metadata", {}).items() if name in _notes(named)}
    return {**flag, "metadata": {**kept, **notes, f"{PURGED}.{version}": revision}}


def _notes(versions: Set[str]) -> set[str]:
    return {f"{PURGED}.{version}" for version in versions}


def _named(document: FlagDocument, model: str, version: str | None) -> Set[str]:
    route = document.routes().get(model)
    if route is None:
        raise UnknownModel(f"no route of a model {model!r}")
    named = set(map(str, route.variants.values()))
    if version is not None and version not in named:
        raise UnknownVersion(
            f"the route of {model!r} names no version {version!r}; it names {', '.join(sorted(named))}"
        )
    return named
