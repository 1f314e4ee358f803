"""Every path and method of the two ports, as the applications themselves have them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starlette.routing import Route

from gateway.control.app import build as build_control
from gateway.serving.app import build as build_worker
from gateway.settings import PathSettings, Settings

Port = Literal["data", "control"]


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One method of one path. path: as the application writes it, with the names of its parameters in braces."""

    port: Port
    path: str
    method: str

    def __str__(self) -> str:
        return f"{self.method} {self.path} ({self.port})"


def targets(root: Path) -> list[Target]:
    """All of them. root: an existing directory; the applications are built for it and not started."""
    settings = Settings(paths=PathSettings(models=root, state=root / "state"))
    control = build_control(settings, boot="fuzz", run_dir=root / "run").app.routes

    async def worker_routes() -> Sequence[object]:
        worker = build_worker(settings, boot="fuzz", report=lambda _text: None)
        worker.registry.close()
        return worker.app.routes

    return sorted({*_of("data", asyncio.run(worker_routes())), *_of("control", control)})


def _of(port: Port, routes: Sequence[object]) -> set[Target]:
    found = set()
    for route in routes:
        if not isinstance(route, Route):
            raise TypeError(f"{route!r} of the {port} port: expected a Route, whose path and methods are known")
        # A plain ASGI app takes all methods; those of ours answer POST.
        methods = {"POST"} if route.methods is None else route.methods - {"HEAD"}
        found |= {Target(port, route.path, method) for method in methods}
    return found
