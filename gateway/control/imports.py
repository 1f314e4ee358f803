"""Taking a whole file of flags in as one audited revision, once or again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import OPERATOR, TokenStore
from gateway.control.changes import Desk, Outcome
from gateway.control.dryrun import tried
from gateway.control.endpoints import reply
from gateway.control.precedence import declared, merged
from gateway.errors import VersionNotWarm
from gateway.flags.audit import Author
from gateway.flags.document import FlagDocument, Json, dump, parse
from gateway.models.source import ModelSource

VERB = "flags.import"


def import_flags(
    desk: Desk,
    source: ModelSource,
    file: FlagDocument,
    *,
    author: Author,
    reason: str,
    expected_revision: int | None = None,
    dry_run: bool = False,
    is_followed: bool = False,
) -> Outcome:
    """Have the flags become what *file* says; see `following.merged`. Blocks on the disk.

    is_followed: for the file that control follows. Then what is blocked waits: all else is written, routes to versions
    that are not warm name them, and the outcome tells what blocks; call again later. Raises as `Desk.change_document`.
    """
    models = {model for model, versions in source.versions().items() if versions}

    def wanted(plain: Json) -> FlagDocument:
        return merged(parse(plain), file, models)

    def change(make: Callable[[Json], Json], based_on: int | None, *, only_try: bool) -> Outcome:
        return desk.change_document(
            make,
            expected_revision=based_on,
            author=author,
            verb=VERB,
            reason=reason,
            dry_run=only_try,
            is_followed=is_followed,
        )

    if not is_followed:
        return change(lambda plain: dump(wanted(plain)), expected_revision, only_try=dry_run)
    attempt = change(lambda plain: dump(wanted(plain)), expected_revision, only_try=True)
    cold = {blocked.flag for blocked in attempt.blocked if isinstance(blocked.error, VersionNotWarm)}
    held = {blocked.flag for blocked in attempt.blocked if not isinstance(blocked.error, VersionNotWarm)}
    outcome = change(
        lambda plain: dump(declared(parse(plain), wanted(plain), cold, held)), attempt.base.revision, only_try=False
    )
    return dataclasses.replace(outcome, blocked=attempt.blocked)


@dataclass(frozen=True, slots=True)
class ImportEndpoint:
    """``POST /admin/v1/flags:import`` with a whole document of flagd JSON."""

    desk: Desk
    tokens: TokenStore
    source: ModelSource

    def routes(self) -> list[Route]:
        return [Route("/admin/v1/flags:import", self.take, methods=["POST"])]

    async def take(self, request: Request) -> Response:
        """Import it whole, or not at all. Models that it does not name keep their route."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        based_on = requests.precondition(request)
        dry_run = requests.switch(request, "dryRun")
        reason = "" if dry_run else requests.reason(request)
        file = parse(await requests.json_object(request))
        outcome = await run_in_threadpool(
            import_flags,
            self.desk,
            self.source,
            file,
            author=requests.author(request, token),
            reason=reason,
            expected_revision=based_on.expected_revision,
            dry_run=dry_run,
        )
        if dry_run:
            return reply(await run_in_threadpool(tried, outcome, None))
        return reply(outcome.after, revision=outcome.document.revision)
