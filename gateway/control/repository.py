"""The Open Inference Protocol's model repository: what there is, and versions declared and let go, at weight 0.

What clients get is decided by routes alone: to load a version is to name it in its model's route as a variant that
answers nobody, so that every worker loads and warms it; to unload one is to take such a variant out again.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import OPERATOR, VIEWER, TokenStore
from gateway.control.changes import Desk, Outcome
from gateway.control.endpoints import reply
from gateway.control.problems import on_gateway_error
from gateway.control.status import FAILED, QUARANTINED, WorkerStatus, not_warm
from gateway.errors import ChangeRefused, GatewayError, InvalidInput, UnknownModel, UnknownVersion, VersionNotWarm
from gateway.flags.audit import Author
from gateway.flags.compile import compile_route
from gateway.flags.document import SHADOW, FlagDocument, Json, parse_flag, route_key
from gateway.models.source import ModelSource

# How long a load may keep its caller waiting; the workers go on with it.
WAIT_S = 60.0
_LOOK_S = 0.1
_STATES = {"warm": "READY", "loading": "LOADING", "draining": "UNLOADING"}


@dataclass(frozen=True, slots=True)
class RepositoryEndpoints:
    """``/v2/repository``, with a token. Refusals are problem documents that also have the protocol's ``error``.

    workers: reads the status documents; blocks.
    """

    desk: Desk
    tokens: TokenStore
    source: ModelSource
    workers: Callable[[], list[WorkerStatus]]

    def routes(self) -> list[Route]:
        model = "/v2/repository/models/{model}"
        return [
            Route("/v2/repository/index", _in_its_words(self.index), methods=["POST"]),
            Route(f"{model}/load", _in_its_words(self.load), methods=["POST"]),
            Route(f"{model}/unload", _in_its_words(self.unload), methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """All versions on disk or in a route; with ``{"ready": true}`` those that are warm in every live worker."""
        await requests.sender(request, self.tokens, VIEWER)
        ready = (await requests.json_object(request, may_be_empty=True)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidInput("ready", repr(ready)[:80], "true or false")
        told = await run_in_threadpool(self._index)
        return reply([entry for entry in told if entry["state"] == "READY" or not ready])

    async def load(self, request: Request) -> Response:
        """Declare a version, the highest one unless one is named, and wait until it is warm in every live worker."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        model, version = request.path_params["model"], await _version(request)
        author, reason = requests.author(request, token), _reason(request, "loaded over the repository API")
        version = await run_in_threadpool(self._highest, model) if version is None else version
        outcome = await run_in_threadpool(self._declare, model, version, author, reason)
        await self._until_warm(model, version)
        return reply({"model": model, "version": version, "revision": outcome.document.revision})

    async def unload(self, request: Request) -> Response:
        """Let go of a version that answers nobody, or of all such versions of the model."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        model, version = request.path_params["model"], await _version(request)
        author, reason = requests.author(request, token), _reason(request, "unloaded over the repository API")
        outcome = await run_in_threadpool(self._let_go, model, version, author, reason)
        return reply({"model": model, "version": version, "revision": outcome.document.revision})

    def _index(self) -> list[dict[str, str]]:
        document, on_disk = self.desk.document(), self.source.versions()
        live = [worker for worker in self.workers() if worker.live]
        told = []
        for model in sorted(on_disk.keys() | document.routes().keys()):
            named = _named(document, model)
            for version in sorted({*on_disk.get(model, ()), *named}):
                state, reason = _state(live, model, version) if version in named else ("UNAVAILABLE", "not declared")
                told.append({"name": model, "version": version, "state": state, "reason": reason})
        return told

    def _highest(self, model: str) -> str:
        versions = self.source.versions().get(model)
        if not versions:
            raise UnknownModel(f"the models directory has no package of a model {model!r}")
        return versions[-1]

    def _declare(self, model: str, version: str, author: Author, reason: str) -> Outcome:
        if version not in self.source.versions().get(model, ()):
            raise UnknownVersion(f"the models directory has no version {version!r} of a model {model!r}")
        return self.desk.change_flag(
            route_key(model), lambda before: declared(model, before, version),
            expected_revision=None, author=author, verb="repository.load", reason=reason,
        )  # fmt: skip

    def _let_go(self, model: str, version: str | None, author: Author, reason: str) -> Outcome:
        return self.desk.change_flag(
            route_key(model), lambda before: let_go(model, before, version, self.desk.document().evaluators),
            expected_revision=None, author=author, verb="repository.unload", reason=reason,
        )  # fmt: skip

    async def _until_warm(self, model: str, version: str) -> None:
        """Raises VersionNotWarm if it cannot be loaded somewhere, or is not in time."""
        until_s = time.monotonic() + WAIT_S
        while True:
            blocking = await run_in_threadpool(lambda: not_warm(self.workers(), model, [version]))
            hopeless = [entry for entry in blocking if entry["state"] in (FAILED, QUARANTINED)]
            if not blocking:
                return
            if hopeless or time.monotonic() > until_s:
                first = (hopeless or blocking)[0]
                raise VersionNotWarm(
                    f"version {version} of {model!r} is declared, but {first['state']} on worker {first['worker']}: "
                    f"{first['reason'] or f'not warm after {WAIT_S:g} s'}",
                    blocking=blocking,
                )
            await asyncio.sleep(_LOOK_S)


def declared(model: str, route: Json | None, version: str) -> Json:
    """The route with a version named in it that answers nobody yet; as it was if it names the version.

    Raises UnknownModel if there is none, ChangeRefused if another version has taken its name.
    """
    plain = _checked(model, route)
    variants: dict[str, Json] = plain["variants"]
    if version in variants.values():
        return plain
    if version in variants:
        raise ChangeRefused(f"the route of {model!r} has a variant {version!r} of version {variants[version]!r}")
    variants[version] = version
    return plain


def let_go(model: str, route: Json | None, version: str | None, evaluators: Mapping[str, Json]) -> Json:
    """The route without a version that answers nobody; None: without all of these, but for the shadow.

    evaluators: the document's named rules.
    Raises UnknownModel, UnknownVersion, and ChangeRefused if it answers, or if none is left that does not.
    """
    plain = _checked(model, route)
    variants: dict[str, Json] = plain["variants"]
    given = compile_route(model, parse_flag(route_key(model), plain, evaluators)).given
    idle = {name: found for name, found in variants.items() if name not in given}
    if version is None:
        going = set(idle) - {SHADOW}
        if not going:
            raise ChangeRefused(f"all versions of {model!r} that are loaded answer requests; its route decides on that")
    else:
        going = {name for name, found in idle.items() if found == version}
        named = {name for name, found in variants.items() if found == version}
        if not named:
            raise UnknownVersion(f"the route of {model!r} names no version {version!r}")
        if named != going:
            answering = ", ".join(sorted(named - going))
            raise ChangeRefused(f"version {version} of {model!r} answers requests, as {answering}; give it 0 % first")
    plain["variants"] = {name: found for name, found in variants.items() if name not in going}
    plain["targeting"] = _without(plain.get("targeting"), going)
    return {name: value for name, value in plain.items() if name != "targeting" or value is not None}


def _checked(model: str, route: Json | None) -> dict[str, Any]:
    """A copy of the route that may be changed."""
    if route is None:
        raise UnknownModel(
            f"model {model!r} has no route yet; a package in the models directory is given one by itself"
        )
    return copy.deepcopy(dict(route))


def _without(rule: Any, variants: set[str]) -> Any:
    """A rule without the shares of nothing that its splits give to *variants*."""
    if isinstance(rule, list):
        return [_without(part, variants) for part in rule if not _is_share_of_nothing(part, variants)]
    if isinstance(rule, dict):
        return {name: _without(value, variants) for name, value in rule.items()}
    return rule


def _is_share_of_nothing(part: Any, variants: set[str]) -> bool:
    return isinstance(part, list) and len(part) == 2 and part[0] in variants and part[1] == 0


def _named(document: FlagDocument, model: str) -> set[str]:
    route = document.routes().get(model)
    return set() if route is None else set(map(str, route.variants.values()))


def _state(live: list[WorkerStatus], model: str, version: str) -> tuple[str, str]:
    """How the index calls what the workers say of a declared version: ready is what is so in all of them."""
    blocking = not_warm(live, model, [version])
    if not live:
        return "UNKNOWN", "no worker is live"
    if not blocking:
        return "READY", ""
    first = min(blocking, key=lambda entry: entry["state"] not in (FAILED, QUARANTINED))
    return _STATES.get(first["state"], "UNAVAILABLE"), first["reason"]


async def _version(request: Request) -> str | None:
    """The version that is asked for, as ``?version=`` or a parameter: the protocol has no word for it."""
    parameters = (await requests.json_object(request, may_be_empty=True)).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters", repr(parameters)[:80], "an object")
    for name in parameters:
        if name not in ("version", "unload_dependents"):
            raise InvalidInput(
                f"parameters.{name}", "what to serve", "version: packages come from the models directory"
            )
    version = parameters.get("version", request.query_params.get("version"))
    if version is not None and not isinstance(version, str):
        raise InvalidInput("parameters.version", repr(version)[:80], "a version as text")
    return version


def _reason(request: Request, usual: str) -> str:
    """Why, from X-Change-Reason; clients of the protocol do not send one."""
    return requests.reason(request) if requests.REASON_HEADER in request.headers else usual


def _in_its_words(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """The endpoint, with an ``error`` in its refusals beside what a problem document has."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)  # type: ignore[no-any-return]  # a bound method of the class above
        except GatewayError as error:
            response = await on_gateway_error(request, error)
            told = {"error": str(error), **orjson.loads(response.body)}
            headers = {name: value for name, value in response.headers.items() if name != "content-length"}
            return Response(orjson.dumps(told), response.status_code, headers)

    return answered
