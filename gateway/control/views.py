"""The doors that only look: health, metrics, workers, models and drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import health, metric_files, quarantine
from gateway.control import requests, shadow_report
from gateway.control.auth import METRICS, VIEWER, TokenStore
from gateway.control.changes import Desk
from gateway.control.endpoints import reply
from gateway.control.flagfile import FileFollower
from gateway.control.status import WARM, WorkerStatus
from gateway.errors import InvalidFlag, PackageInvalid, QuarantineUnavailable, UnknownModel
from gateway.flags.compile import Route as CompiledRoute
from gateway.flags.compile import compile_route
from gateway.flags.document import MODEL_PATTERN, FlagDocument
from gateway.models import manifest
from gateway.models.source import ModelSource


@dataclass(frozen=True, slots=True)
class Views:
    """workers: reads the status documents that can be had now; blocks."""

    desk: Desk
    tokens: TokenStore
    source: ModelSource
    workers: Callable[[], list[WorkerStatus]]
    boot: str
    models_dir: Path
    drift_dir: Path
    metrics_dir: Path
    follower: FileFollower | None
    quarantine_path: Path

    def routes(self) -> list[Route]:
        return [
            Route("/livez", self.live, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/admin/v1/status", self.status, methods=["GET"]),
            Route("/admin/v1/models", self.models, methods=["GET"]),
            Route("/admin/v1/models/{model}/drift", self.drift, methods=["GET"]),
            Route("/admin/v1/models/{model}/shadow", self.shadow, methods=["GET"]),
        ]

    async def live(self, _request: Request) -> Response:
        """Answers as long as the process does."""
        return reply({"live": True})

    async def ready(self, _request: Request) -> Response:
        """Ready while the flags can be read; else the problem document of the store."""
        await run_in_threadpool(self.desk.document)
        return reply({"ready": True})

    async def metrics(self, request: Request) -> Response:
        """The merged metrics of all processes of this boot."""
        await requests.sender(request, self.tokens, METRICS)
        page = await run_in_threadpool(metric_files.render, self.metrics_dir)
        return Response(page, headers={"content-type": metric_files.CONTENT_TYPE})

    async def status(self, request: Request) -> Response:
        """What every worker says of itself, what no worker may load, and how a flags file is that is followed."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.desk.at_hand)
        workers = await run_in_threadpool(self.workers)
        document = {
            "boot": self.boot,
            "revision": found.document.revision,
            "workers": [worker.to_json() for worker in workers],
            "supervisor": await run_in_threadpool(health.read, self.metrics_dir.parent),
            "quarantine": await run_in_threadpool(self._quarantined),
        }
        return reply(
            document if self.follower is None else {**document, "import": self.follower.describe()},
            stale_s=found.stale_s,
        )

    def _quarantined(self) -> list[dict[str, str]] | None:
        """None if the list cannot be read: /admin/v1/quarantine says why."""
        try:
            return [entry.to_json() for entry in quarantine.read(self.quarantine_path)]
        except QuarantineUnavailable:
            return None

    async def models(self, request: Request) -> Response:
        """The packages on disk and the versions that routes name, with their state in the workers."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.desk.at_hand)
        return reply({"models": await run_in_threadpool(self._models, found.document)}, stale_s=found.stale_s)

    async def drift(self, request: Request) -> Response:
        """The monitor's latest report on a model."""
        await requests.sender(request, self.tokens, VIEWER)
        model = request.path_params["model"]
        raw = await run_in_threadpool(self._drift, model)
        if raw is None:
            raise UnknownModel(f"there is no drift report for {model!r} yet")
        return Response(raw, headers={"cache-control": "no-store"}, media_type="application/json")

    async def shadow(self, request: Request) -> Response:
        """How the answers of a model's shadow version differ from those that went out."""
        await requests.sender(request, self.tokens, VIEWER)
        model = request.path_params["model"]
        document = await run_in_threadpool(self.desk.document)
        if model not in document.routes():
            raise UnknownModel(f"there is no model {model!r}")
        return reply(shadow_report.report(document, await run_in_threadpool(self.workers), model))

    def _drift(self, model: str) -> bytes | None:
        if not MODEL_PATTERN.fullmatch(model):
            return None
        try:
            return (self.drift_dir / f"{model}.json").read_bytes()
        except FileNotFoundError:
            return None

    def _models(self, document: FlagDocument) -> list[dict[str, Any]]:
        workers = [worker for worker in self.workers() if worker.live]
        on_disk = self.source.versions()
        return [
            self._model(model, on_disk.get(model, []), _compiled(document, model), workers)
            for model in sorted(on_disk.keys() | document.routes().keys())
        ]

    def _model(
        self, model: str, on_disk: list[str], route: CompiledRoute | None, workers: list[WorkerStatus]
    ) -> dict[str, Any]:
        named = route.named if route is not None else frozenset()
        versions = []
        for version in sorted({*on_disk, *named}, key=manifest.version_order):
            states = [(worker.name, *worker.version(model, version)) for worker in workers]
            versions.append(
                {
                    "version": version,
                    "on_disk": version in on_disk,
                    "declared": version in named,
                    "reachable": route is not None and version in route.reachable,
                    "warm": bool(states) and all(state == WARM for _, state, _ in states),
                    "workers": {name: {"state": state, "reason": reason} for name, state, reason in states},
                    "manifest": self._summary(model, version) if version in on_disk else None,
                }
            )
        revision = route.revision if route is not None else None
        return {"model": model, "route_revision": revision, "versions": versions}

    def _summary(self, model: str, version: str) -> dict[str, Any] | None:
        """What a person wants of the manifest; None for a bare package. Nothing is hashed here."""
        path = self.models_dir / model / version / manifest.MANIFEST_FILE
        try:
            found = manifest.parse(path.read_bytes(), where=f"{model}/{version}")
        except FileNotFoundError:
            return None
        except (PackageInvalid, OSError) as error:
            return {"invalid": str(error)}
        return {
            "created": found.created,
            "framework": dict(found.framework),
            "metrics": dict(found.metrics),
            "quantization": dict(found.quantization),
            "card": dict(found.card),
        }


def _compiled(document: FlagDocument, model: str) -> CompiledRoute | None:
    flag = document.routes().get(model)
    try:
        return None if flag is None else compile_route(model, flag, document.bucketing)
    except InvalidFlag:
        return None
