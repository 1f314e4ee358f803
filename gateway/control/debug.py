"""The doors that look into the workers of this host: queues, caches, flags in force, threads and their stacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import debugging
from gateway.control import requests
from gateway.control.auth import ADMIN, VIEWER, TokenStore
from gateway.control.endpoints import reply
from gateway.control.status import WorkerStatus, read_workers
from gateway.errors import InvalidInput

# How long a worker gets to answer. One that works needs a tenth of a second; what hangs is told of as it was.
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class DebugEndpoints:
    """run_dir: of this boot; workers of others that share the state directory are looked into too."""

    tokens: TokenStore
    run_dir: Path
    clock: Callable[[], float] = time.time

    def routes(self) -> list[Route]:
        return [
            Route("/debug/workers", self.workers, methods=["GET"]),
            Route("/debug/stacks", self.stacks, methods=["GET"]),
        ]

    async def workers(self, request: Request) -> Response:
        """What each live worker of this host looks like inside, as it is now."""
        await requests.sender(request, self.tokens, VIEWER)
        return reply({"workers": await run_in_threadpool(self._look)})

    async def stacks(self, request: Request) -> Response:
        """What each thread of one worker is doing, told by the worker or, if that hangs, in spite of it."""
        await requests.sender(request, self.tokens, ADMIN)
        return reply(await run_in_threadpool(self._stacks, request.query_params.get("worker", "")))

    def _live(self) -> list[WorkerStatus]:
        return [worker for worker in read_workers(self.run_dir, self.clock()) if self._is_there(worker)]

    def _is_there(self, worker: WorkerStatus) -> bool:
        """A worker that hangs writes no status any more, but is there to be looked into."""
        return Path(f"/proc/{worker.document['pid']}").exists()

    def _dir(self, worker: WorkerStatus) -> Path:
        return self.run_dir.parent / str(worker.document["boot"])

    def _look(self) -> list[dict[str, Any]]:
        workers = self._live()
        since_ns = {folder: debugging.ask(folder) for folder in {self._dir(worker) for worker in workers}}
        deadline_s = time.monotonic() + _TIMEOUT_S
        return [self._look_into(worker, since_ns[self._dir(worker)], deadline_s) for worker in workers]

    def _look_into(self, worker: WorkerStatus, since_ns: int, deadline_s: float) -> dict[str, Any]:
        pid = worker.document["pid"]
        path = debugging.document_path(self._dir(worker), worker.slot, pid)
        found, is_answer = debugging.answer(path, since_ns, deadline_s)
        about = {
            "worker": worker.slot,
            "pid": pid,
            "boot": worker.document["boot"],
            "phase": worker.document.get("phase"),
            "answers": is_answer,
        }
        return about if found is None else {**about, **{key: told for key, told in found.items() if key != "asked_ns"}}

    def _stacks(self, came: str) -> dict[str, Any]:
        workers = {str(worker.slot): worker for worker in self._live()}
        worker = workers.get(came)
        if worker is None:
            there = ", ".join(sorted(workers)) or "none"
            raise InvalidInput("worker", repr(came[:40]), f"the slot of a worker of this host; there: {there}")
        pid, folder = worker.document["pid"], self._dir(worker)
        found = debugging.take_stacks(debugging.stacks_path(folder, worker.slot, pid), pid, _TIMEOUT_S)
        told = debugging.read(debugging.document_path(folder, worker.slot, pid)) or {}
        names = {thread["ident"]: thread["name"] for thread in told.get("threads", ())}
        threads = [
            {"name": names.get(ident, "started since it was last asked"), "ident": ident, "stack": stack}
            for ident, stack in found
        ]
        return {"worker": worker.slot, "pid": pid, "threads": threads}
