"""The doors to the rollouts: start, look, and the verbs; each translates HTTP to the books and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import observation, requests, steering
from gateway.control.auth import OPERATOR, VIEWER, TokenStore
from gateway.control.endpoints import reply
from gateway.control.merge import differences
from gateway.control.record import Rollout
from gateway.control.rollouts import Rollouts
from gateway.errors import InvalidInput
from gateway.flags.audit import Author

Told = TypeVar("Told")

_RETRY = "retry"  # starts the same plan once more


@dataclass(frozen=True, slots=True)
class RolloutEndpoints:
    """``/admin/v1/rollouts`` and ``/admin/v1/models/{model}/rollouts``."""

    rollouts: Rollouts
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/models/{model}/rollouts", self.start, methods=["POST"]),
            Route("/admin/v1/models/{model}/rollouts", self.list, methods=["GET"]),
            Route("/admin/v1/rollouts", self.list, methods=["GET"]),
            Route("/admin/v1/rollouts/{id}:{verb}", self.command, methods=["POST"]),
            Route("/admin/v1/rollouts/{id}/report", self.report, methods=["GET"]),
            Route("/admin/v1/rollouts/{id}", self.read, methods=["GET"]),
        ]

    async def start(self, request: Request) -> Response:
        """A new rollout from its plan; with ``?dryRun=true`` what it would do, step by step, and could see."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        model = request.path_params["model"]
        dry_run = requests.switch(request, "dryRun")
        reason = "" if dry_run else requests.reason(request)
        plan = await requests.json_object(request)
        author = requests.author(request, token)
        begun = await run_in_threadpool(
            self.rollouts.start,
            model,
            plan,
            author=author,
            reason=reason,
            dry_run=dry_run,
            break_glass=requests.break_glass(request),
        )
        if dry_run:
            approvals = await run_in_threadpool(self.rollouts.approvals_needed, begun)
            told = {"dryRun": True, "plan": begun.plan.to_json(), "approvals": approvals}
            return reply({**told, **_forecast(begun)})
        return reply(await self._look(lambda: _told(begun)), status=201, revision=begun.revision)

    async def list(self, request: Request) -> Response:
        """All rollouts, newest first; of one model or of all."""
        await requests.sender(request, self.tokens, VIEWER)
        model = request.path_params.get("model")
        found = await run_in_threadpool(self.rollouts.all, model)
        unreadable = await run_in_threadpool(self.rollouts.unreadable, model)
        told = await self._look(lambda: [each.describe() for each in found])
        more = {"unreadable": [{"id": each, "why": why} for each, why in unreadable.items()]} if unreadable else {}
        return reply({"rollouts": told, **more})

    async def read(self, request: Request) -> Response:
        """One rollout: where it stands, what comes next, and what the judge has seen."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.rollouts.find, request.path_params["id"])
        return reply(await self._look(lambda: _told(found)), revision=found.revision)

    async def report(self, request: Request) -> Response:
        """What can be said of the two arms: exposure, effects, and what can be concluded."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.rollouts.find, request.path_params["id"])
        return reply(await self._look(lambda: {**found.describe(), **observation.report(found)}))

    async def command(self, request: Request) -> Response:
        """A verb of an operator."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        verb, rollout_id = request.path_params["verb"], request.path_params["id"]
        if verb not in (*steering.VERBS, _RETRY):
            raise InvalidInput("path", repr(verb)[:80], f"one of {', '.join((*steering.VERBS, _RETRY))}")
        author, reason = requests.author(request, token), requests.reason(request)
        if verb == "abort":
            ended = await run_in_threadpool(self.rollouts.end_unreadable, rollout_id, author=author, reason=reason)
            if ended is not None:
                return reply(ended)
        done = await run_in_threadpool(self._do, rollout_id, verb, author=author, reason=reason)
        told = await self._look(lambda: _told(done))
        return reply(told, status=201 if verb == _RETRY else 200, revision=done.revision)

    async def _look(self, tell: Callable[[], Told]) -> Told:
        """What *tell* says while nobody changes what it looks at."""

        def look() -> Told:
            with self.rollouts.lock:
                return tell()

        return await run_in_threadpool(look)

    def _do(self, rollout_id: str, verb: str, *, author: Author, reason: str) -> Rollout:
        if verb != _RETRY:
            return self.rollouts.command(rollout_id, verb, author=author, reason=reason)
        before = self.rollouts.find(rollout_id)
        return self.rollouts.start(before.model, before.plan.to_json(), author=author, reason=reason)


def _told(found: Rollout) -> dict[str, Any]:
    return {
        **found.describe(),
        "plan": found.plan.to_json(),
        "judge": observation.evidence(found),
        "not_yet_promotable": observation.promotion(found),
    }


def _forecast(begun: Rollout) -> dict[str, Any]:
    """The route at each step, and which regressions the plan can see."""
    plan, base = begun.plan, begun.base
    steps = []
    before = base
    for name, route in steering.stages(plan, base):
        steps.append({"stage": name, "diff": [*differences(before, route)]})
        before = route
    return {"stages": steps, "foresight": observation.foresight(plan)}
