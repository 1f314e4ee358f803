"""The servers that are measured, started on one core: the empty app, and gateways with everything on or off."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from speed import machine
from speed.asks import OIP, Ask, body
from speed.models import CANARY, STABLE, Model

CACHE_OFF = {"SLUICEGATE_CACHE__MAX_BYTES": "0"}
SAMPLING_OFF = {"SLUICEGATE_SAMPLING__RATE": "0"}
START_TIMEOUT_S = 60.0
_TOLERANCE = 1e-4
_PEOPLE = 40  # different targeting keys of a check; of so many some come to the canary


class WrongAnswer(Exception):
    """A server answered something else than the model itself."""


@dataclass(slots=True)
class Server:
    """A running server. pid: the first of its processes."""

    name: str
    pid: int
    url: str
    ready: Path | None = None  # where a gateway writes its addresses and pids

    def processes(self) -> list[int]:
        return machine.tree(self.pid)

    @property
    def told(self) -> Mapping[str, Any]:
        """What a gateway wrote when it was ready, or when that changed last."""
        assert self.ready is not None
        found: Mapping[str, Any] = json.loads(self.ready.read_text())
        return found

    @property
    def worker(self) -> int:
        """The pid of a gateway's first worker."""
        return int(next(child["pid"] for child in self.told["children"] if child["role"] == "worker"))


@contextlib.contextmanager
def bare(root: Path) -> Iterator[Server]:
    """The yardstick: an ASGI app that reads the body and answers a constant, on uvicorn as it comes."""
    port = machine.free_port()
    command = [sys.executable, "-m", "uvicorn", "bare_app:app", "--app-dir", str(machine.ROOT / "benchmarks"),
               "--port", str(port), "--no-access-log", "--log-level", "warning"]  # fmt: skip
    with machine.pinned(command, root / "bare.log") as process:
        server = Server("empty app on uvicorn", process.pid, f"http://127.0.0.1:{port}")
        machine.wait_for(lambda: _answers(server.url), process, START_TIMEOUT_S)
        yield server


@contextlib.contextmanager
def serve(
    root: Path, name: str, models: Mapping[str, Model], settings: Mapping[str, str], *, workers: int = 1
) -> Iterator[tuple[subprocess.Popen[bytes], Server]]:
    """`sluicegate serve`, only just started; one of the same name that ran before left its state to this one."""
    folder, port = root / f"{name}.models", machine.free_port()
    folder.mkdir(exist_ok=True)
    for model in models.values():
        if not (folder / model.name).exists():
            (folder / model.name).symlink_to(model.folder)
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(folder),
               "--state", str(root / f"{name}.state"), "--host", "127.0.0.1", "--port", str(port),
               "--control-port", "0", "--workers", str(workers),
               "--ready-file", str(root / f"{name}.ready.json")]  # fmt: skip
    settings = {**settings, "SLUICEGATE_LOG__LEVEL": "error"}
    with machine.pinned(command, root / f"{name}.log", settings) as process:
        yield process, Server(name, process.pid, f"http://127.0.0.1:{port}", root / f"{name}.ready.json")


@contextlib.contextmanager
def gateway(
    root: Path,
    name: str,
    models: Mapping[str, Model],
    settings: Mapping[str, str],
    *,
    canary: bool = True,
    workers: int = 1,
) -> Iterator[Server]:
    """A gateway that is ready and answers rightly, with a 90/10 canary on each model unless told otherwise."""
    with serve(root, name, models, settings, workers=workers) as (process, server):
        assert server.ready is not None
        machine.wait_for(server.ready.exists, process, START_TIMEOUT_S)
        if canary:
            with _control(server.told["control"]["url"], root / f"{name}.state") as control:
                for model_name in models:
                    split_traffic(control, model_name, process)
        for model in models.values():
            machine.wait_for(partial(_is_right, server, model, canary=canary), process, START_TIMEOUT_S)
        yield server


def split_traffic(control: httpx.Client, model: str, process: Any) -> None:
    """Declare the second version as the canary, and give it a tenth of the targeting keys once it is warm."""
    patches = ({"variants": {"canary": CANARY}}, {"targeting": {"fractional": [["canary", 10], ["stable", 90]]}})
    for patch in patches:
        machine.wait_for(partial(_patch, control, model, patch), process, START_TIMEOUT_S)


@contextlib.contextmanager
def _control(url: str, state: Path) -> Iterator[httpx.Client]:
    token = (state / "admin.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "if-match": "*", "x-change-reason": "benchmark"}
    with httpx.Client(base_url=url, headers=headers) as client:
        yield client


def _patch(control: httpx.Client, model: str, patch: Mapping[str, Any]) -> bool:
    return control.patch(f"/admin/v1/flags/{model}.route", json=patch).status_code == 200


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _is_right(server: Server, model: Model, *, canary: bool) -> bool:
    try:
        check_gateway(server, model, canary=canary)
    except (WrongAnswer, httpx.TransportError):
        return False
    return True


def is_answering(client: httpx.Client, model: Model) -> bool:
    """Whether a gateway gives the right answer now."""
    try:
        reply = client.post(infer_path(model.name), content=body([model.rows[0]], OIP))
        if reply.status_code != 200:
            return False
        check("gateway", reply.content, model.wanted[reply.headers["x-model-version"]][0])
    except httpx.TransportError:
        return False
    return True


def check_gateway(server: Server, model: Model, *, canary: bool) -> None:
    """Raise WrongAnswer unless predictions are those of the version that gave them, and each version gives some."""
    seen = set()
    with httpx.Client(base_url=server.url) as client:
        for person in range(_PEOPLE):
            index = person % len(model.wanted[STABLE])
            headers = {"content-type": "application/json", "x-targeting-key": f"user-{person:03d}"}
            reply = client.post(infer_path(model.name), content=body([model.rows[index]], OIP), headers=headers)
            if reply.status_code != 200:
                raise WrongAnswer(f"{server.name}: status {reply.status_code} for {model.name}: {reply.text[:200]}")
            version = reply.headers["x-model-version"]
            seen.add(version)
            check(server.name, reply.content, model.wanted[version][index])
    expected = {STABLE, CANARY} if canary else {STABLE}
    if seen != expected:
        raise WrongAnswer(f"{server.name}: versions {seen} of {model.name} answered, expected {expected}")


def check_peer(server: Server, ask: Ask, model: Model, style: str) -> None:
    """Raise WrongAnswer unless a server that knows one version gives its predictions."""
    with httpx.Client(base_url=server.url, timeout=30.0) as client:
        for row, wanted in zip(model.rows, model.wanted[STABLE], strict=False):
            reply = client.post(ask.path, content=body([row], style), headers=dict(ask.headers))
            if not reply.is_success:
                raise WrongAnswer(f"{server.name}: status {reply.status_code}: {reply.text[:300]}")
            check(server.name, reply.content, wanted)


def check(name: str, content: bytes, wanted: list[float]) -> None:
    """Raise WrongAnswer unless a reply holds these probabilities."""
    try:
        found = probabilities_in(json.loads(content))
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise WrongAnswer(f"{name}: no probabilities in {content[:300]!r}") from error
    if len(found) != len(wanted) or any(abs(a - b) > _TOLERANCE for a, b in zip(found, wanted, strict=True)):
        raise WrongAnswer(f"{name}: probabilities {found}, the model itself gives {wanted}")


def probabilities_in(document: Any) -> list[float]:
    """The probabilities of one row: in a tensor of the Open Inference Protocol, or in plain lists."""
    if isinstance(document, list):
        (document,) = document
    if "outputs" in document:
        data = next(output["data"] for output in document["outputs"] if output["name"] == "probabilities")
    else:
        data = document["probabilities"]
    while isinstance(data[0], list):
        (data,) = data
    return [float(value) for value in data]


def infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"
