"""What TorchServe and MLflow tell of the server and its models: health, and descriptions that nobody can change here.

Source: pytorch/serve, docs/inference_api.md and docs/management_api.md; mlflow/mlflow, pyfunc/scoring_server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.codecs.torchserve import TorchServeCodec
from gateway.errors import GatewayError, InvalidInput, MethodNotAllowed, Unsupported
from gateway.serving.keygate import key_of
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.replies import error_headers, status_of
from gateway.serving.router import Router
from gateway.serving.target import PredictionPath

# With some, TorchServe's management port would change something; all are refused here, in its own words.
_ALL = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
_PAGE_MODELS = 100


class TorchServeQuestions:
    """Questions about health and models; each is short and never blocks.

    is_ready: whether this worker should get traffic. paths: those that the description of the API tells.
    max_batch_rows: rows that share a run at the most.
    """

    def __init__(
        self,
        router: Router,
        registry: Registry,
        is_ready: Callable[[], bool],
        paths: Sequence[PredictionPath],
        *,
        max_batch_rows: int,
    ) -> None:
        self._router = router
        self._registry = registry
        self._is_ready = is_ready
        self._paths = paths
        self._max_batch_rows = max_batch_rows
        self._codec = TorchServeCodec(status_of)
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds")

    def routes(self) -> list[Route]:
        """The paths that they are asked by."""
        return [
            Route("/", self.describe_api, methods=["OPTIONS"]),
            Route("/ping", self.ping),
            Route("/health", self.ping),
            Route("/version", self.version),
            Route("/explanations/{model}", self.explain, methods=["POST", "PUT"]),
            Route("/explanations/{model}/{version}", self.explain, methods=["POST", "PUT"]),
            Route("/models", self.models, methods=_ALL),
            Route("/models/{model}", self.model, methods=_ALL),
            Route("/models/{model}/{version}", self.model, methods=_ALL),
        ]

    async def ping(self, request: Request) -> Response:
        """Whether predictions are answered: the status is what MLflow's clients look at, the body is TorchServe's."""
        ready = self._is_ready()
        return _json({"status": "Healthy" if ready else "Unhealthy"}, 200 if ready else 500)

    async def version(self, request: Request) -> Response:
        """MLflow's question; the version is the gateway's."""
        return Response(__version__, media_type="text/plain")

    async def describe_api(self, request: Request) -> Response:
        """The prediction paths as an OpenAPI document."""
        return _json(
            {
                "openapi": "3.0.1",
                "info": {"title": "Sluicegate", "version": __version__},
                "paths": {path.pattern: _operations(path) for path in self._paths},
            }
        )

    async def explain(self, request: Request) -> Response:
        """Explanations, which there are none of."""
        return self.refusal(Unsupported("explanations are not offered here"))

    async def models(self, request: Request) -> Response:
        """The models by name, a page at a time."""
        try:
            return _json(self._models(request))
        except GatewayError as error:
            return self.refusal(error)

    def _models(self, request: Request) -> dict[str, Any]:
        _check_method(request)
        limit, start = _number(request, "limit", _PAGE_MODELS, 1), _number(request, "next_page_token", 0, 0)
        key = key_of(request.scope)
        names = sorted(name for name in self._router.known if key is None or key.allows(name))
        page = [{"modelName": name, "modelUrl": name} for name in names[start : start + limit]]
        more = {"nextPageToken": str(start + limit)} if start + limit < len(names) else {}
        return {**more, "models": page}

    async def model(self, request: Request) -> Response:
        """The default version of a model, one that is named, or all that are warm."""
        parts = request.path_params
        model, version = parts["model"], parts.get("version")
        try:
            _check_method(request)
            default = self._router.default(model)
            found = [default] if version is None else []
            if version == "all":
                warm = [self._registry.find(model, name) for name in self._registry.warm_versions(model)]
                found = [live for live in warm if live is not None]
            elif version is not None:
                found = [self._router.pinned(model, version)]
            return _json([self._description(live) for live in found])
        except GatewayError as error:
            return self.refusal(error)

    def _description(self, live: LiveVersion) -> dict[str, Any]:
        queued_rows = live.batcher.queued_rows
        return {
            "modelName": live.model,
            "modelVersion": live.version,
            "modelUrl": f"{live.model}/{live.version}",
            "engine": "onnxruntime",
            "runtime": "python",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": self._max_batch_rows if live.signature.batchable else 1,
            "maxBatchDelay": 0,
            "workers": [
                {
                    "id": str(os.getpid()),
                    "startTime": self._started,
                    "status": "READY",
                    "gpu": False,
                    "memoryUsage": 0,
                }
            ],
            "jobQueueStatus": {
                "remainingCapacity": max(0, live.batcher.room.bound_rows - queued_rows),
                "pendingRequests": queued_rows,
            },
        }

    def refusal(self, error: GatewayError) -> Response:
        """The answer to what is not answered, in TorchServe's own shape."""
        headers = {name.decode(): value.decode() for name, value in error_headers(error)}
        return Response(self._codec.error(error), status_of(error), headers, media_type="application/json")


def _operations(path: PredictionPath) -> dict[str, Any]:
    names = [piece.partition("}")[0] for piece in path.pattern.split("{")[1:]]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    answers = {"200": {"description": "predictions"}, "default": {"description": "a refusal that names the field"}}
    return {method.lower(): {"parameters": parameters, "responses": answers} for method in path.methods}


def _check_method(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(request.method, "GET")


def _number(request: Request, name: str, usual: int, least: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise InvalidInput(name, repr(text[:40]), f"a whole number of at least {least}")
    return int(text)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
