"""What the Open Inference Protocol's extensions ask of models: configuration, statistics, the repository."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import CallerLeft, Forbidden, InvalidInput
from gateway.serving import introspect
from gateway.serving.bodies import read_body
from gateway.serving.keygate import key_of
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Router
from gateway.serving.statistics import Statistics

# The body of a question about the repository is an object of one boolean.
_MAX_BODY_BYTES = 64 * 1024


class Extensions:
    """GETs and POSTs; each is short, and what blocks on the disk does so in a thread.

    max_rows: how many rows a request may have.
    """

    def __init__(self, router: Router, registry: Registry, statistics: Statistics, max_rows: int) -> None:
        self._router = router
        self._registry = registry
        self._statistics = statistics
        self._max_rows = max_rows
        self._reading = asyncio.Lock()

    def routes(self) -> list[Route]:
        """The paths that they are asked by. They go before others that a model called ``stats`` would have."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        repository = "/v2/repository"
        return [
            Route("/v2/models/stats", self.all_statistics),
            Route(f"{model}/config", self.config),
            Route(f"{version}/config", self.config),
            Route(f"{model}/stats", self.statistics),
            Route(f"{version}/stats", self.statistics),
            Route(f"{repository}/index", self.index, methods=["POST"]),
            Route(f"{repository}/models/{{model}}/load", self.refuse, methods=["POST"]),
            Route(f"{repository}/models/{{model}}/unload", self.refuse, methods=["POST"]),
        ]

    async def config(self, request: Request) -> Response:
        return _json(introspect.model_config(self._find(request), self._max_rows))

    async def statistics(self, request: Request) -> Response:
        """Of one version, or of all that are warm."""
        version, live = request.path_params.get("version"), self._find(request)
        versions = self._registry.warm_versions(live.model) if version is None else [live.version]
        return await self._told([(live.model, each) for each in versions])

    async def all_statistics(self, request: Request) -> Response:
        """Of all models; with a key that is not good for all, of those that it is good for."""
        key = key_of(request.scope)
        models = introspect.models(self._router, None if key is None else key.allows)["models"]
        return await self._told([(model, each) for model in models for each in self._registry.warm_versions(model)])

    async def _told(self, versions: list[tuple[str, str]]) -> Response:
        def read() -> list[dict[str, Any]]:
            return [self._statistics.of(*version) for version in versions]

        async with self._reading:
            return _json({"model_stats": await asyncio.to_thread(read)})

    async def index(self, request: Request) -> Response:
        """The versions that the flags declare; with ``{"ready": true}`` those that can be asked."""
        key = key_of(request.scope)
        ready = _ready(await _body(request))
        allows = None if key is None else key.allows
        return _json(introspect.repository(self._router, self._registry, ready=ready, allows=allows))

    async def refuse(self, request: Request) -> Response:
        """What is served is decided by who has a token, and those are for the admin port."""
        raise Forbidden(
            f"models are loaded and unloaded on the admin port, with a token of the scope operator: POST "
            f"{request.url.path} there"
        )

    def _find(self, request: Request) -> LiveVersion:
        model, version = request.path_params["model"], request.path_params.get("version")
        return self._router.default(model) if version is None else self._router.pinned(model, version)


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


async def _body(request: Request) -> bytes:
    body = await read_body(request.receive, _MAX_BODY_BYTES)
    if body is None:
        raise CallerLeft("the caller left before the end of the body")
    return body


def _ready(body: bytes) -> bool:
    """What the body of a question about the repository says."""
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidInput("body", f"text that is not JSON ({error})", "a JSON object, or nothing") from error
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInput("ready", "something else", "true or false, in a JSON object")
    return ready
