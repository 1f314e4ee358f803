"""The demo's traffic: real rows in several protocols, each answer compared with ONNX Runtime's own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gateway.cli.demo_client import Connection, Reply
from gateway.tensors import Array, Tensors

CANCER, DIGITS = "breast-cancer", "digits"
# What happens to the measurements half way: as if one device were replaced and another lost its calibration.
SHIFTS: Mapping[str, Callable[[Array], Array]] = {
    "mean radius": lambda values: values * 1.35,
    "mean texture": lambda values: values + 7.0,
}
SHIFT_TEXT = "mean radius x 1.35, mean texture + 7"

REQUESTS_PER_S = 200
BURST_EVERY_S = 0.5
BURST_REQUESTS = 40
CONNECTIONS = 64
CLIENTS = 2000  # targeting keys
HOT_ROWS = 16
HOT_SHARE = 0.2
ANONYMOUS_SHARE = 0.1  # requests without a targeting key
ROWS_PER_REQUEST = (1, 1, 2, 3, 4, 8)
SUM_TOLERANCE = 1e-3
_MESSAGES_KEPT = 5
_LENGTH_HEADER = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Subject:
    """One model's rows, as they are and shifted, and what every version must answer to them.

    rows: float32 [2, n, features], plain and shifted. expected: by version, outputs [2, n, ...]. tolerance: what the
    package itself promises for its golden predictions.
    """

    model: str
    features: tuple[str, ...]
    rows: Array
    expected: Mapping[str, Tensors]
    classes: tuple[Any, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: which rows, how, and for whom."""

    subject: Subject
    protocol: str  # native, oip or binary
    picked: tuple[int, ...]
    shifted: bool
    key: str | None
    phase: str


@dataclass(slots=True)
class Counts:
    """What came back. variants: (phase, model, variant) -> requests."""

    requests: int = 0
    rows: int = 0
    failed: int = 0
    wrong: int = 0
    largest_difference: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    rows_by_model: collections.Counter[str] = field(default_factory=collections.Counter)
    variants: collections.Counter[tuple[str, str, str]] = field(default_factory=collections.Counter)
    messages: list[str] = field(default_factory=list)
    sticky: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def note(self, message: str) -> None:
        if len(self.messages) < _MESSAGES_KEPT:
            self.messages.append(message)


class Wrong(Exception):
    """An answer is not what it must be."""


def load_subject(models: Path, model: str, traffic: Path, versions: Sequence[str]) -> Subject:
    """Read the rows of a traffic file and let ONNX Runtime answer them, without any gateway."""
    from gateway.models import manifest
    from gateway.models.runtime import OnnxRuntime

    document = json.loads(traffic.read_text())
    features = tuple(document["features"])
    plain = np.array(document["rows"])
    shifted = plain.copy()
    if model == CANCER:
        for name, shift in SHIFTS.items():
            shifted[:, features.index(name)] = shift(plain[:, features.index(name)])
    rows = np.stack([plain, shifted]).astype(np.float32)
    expected: dict[str, Tensors] = {}
    tolerance = 0.0
    for version in versions:
        package = models / model / version
        about = manifest.parse((package / manifest.MANIFEST_FILE).read_bytes(), where=str(package))
        golden = json.loads((package / manifest.GOLDEN_FILE).read_text())
        tolerance = max(tolerance, float(golden["tolerance"]["absolute"]))
        runtime = OnnxRuntime((package / manifest.MODEL_FILE).read_bytes())
        answers = runtime.run({"input": rows.reshape(-1, len(features))})
        expected[version] = {name: array.reshape(*rows.shape[:2], *array.shape[1:]) for name, array in answers.items()}
    return Subject(model, features, rows, expected, tuple(about.signature.classes or ()), tolerance)


class Stream:
    """Sends requests at a steady pace over keep-alive connections, with bursts in between, until it is told to stop.

    phase, shifted: may be changed while it runs.
    """

    def __init__(self, url: str, subjects: Sequence[Subject], seed: int = 0) -> None:
        self._url = url
        self._subjects = {subject.model: subject for subject in subjects}
        self._random = random.Random(seed)
        self._hot = self._random.sample(range(self._subjects[CANCER].rows.shape[1]), HOT_ROWS)
        self._queue: asyncio.Queue[Ask | None] = asyncio.Queue(CONNECTIONS)
        self._stopping = False
        self.phase = ""
        self.shifted = False
        self.counts = Counts()

    def stop(self) -> None:
        """No more requests; those in flight are still answered."""
        self._stopping = True

    async def run(self) -> None:
        """Returns once it was told to stop and all answers are in."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._client())
            await self._pace()
            for _ in range(CONNECTIONS):
                await self._queue.put(None)

    async def _pace(self) -> None:
        started_s = time.monotonic()
        due, bursts = 0, 0
        while not self._stopping:
            elapsed_s = time.monotonic() - started_s
            wanted = int(elapsed_s * REQUESTS_PER_S)
            asks = [self._next() for _ in range(wanted - due)]
            due = wanted
            if elapsed_s >= (bursts + 1) * BURST_EVERY_S:
                bursts += 1
                asks += [self._next() for _ in range(BURST_REQUESTS)]
            for ask in asks:
                # A machine that cannot keep up gets a slower stream, not a heap of old requests.
                with contextlib.suppress(asyncio.QueueFull):
                    self._queue.put_nowait(ask)
            await asyncio.sleep(1 / REQUESTS_PER_S)

    def _next(self) -> Ask:
        draw = self._random
        key = None if draw.random() < ANONYMOUS_SHARE else f"client-{draw.randrange(CLIENTS)}"
        if draw.random() < HOT_SHARE:
            return Ask(self._subjects[CANCER], "native", (draw.choice(self._hot),), self.shifted, key, self.phase)
        model, protocol = draw.choice(((CANCER, "native"), (CANCER, "native"), (DIGITS, "oip"), (DIGITS, "binary")))
        subject = self._subjects[model]
        picked = draw.choices(range(subject.rows.shape[1]), k=draw.choice(ROWS_PER_REQUEST))
        return Ask(subject, protocol, tuple(picked), self.shifted and model == CANCER, key, self.phase)

    async def _client(self) -> None:
        """One connection: sends what is next in the queue, until that is None."""
        connection = Connection(self._url)
        try:
            while (ask := await self._queue.get()) is not None:
                await self._send(connection, ask)
        finally:
            connection.close()

    async def _send(self, connection: Connection, ask: Ask) -> None:
        counts = self.counts
        path, body, headers = _request(ask)
        if ask.key is not None:
            headers["x-targeting-key"] = ask.key
        begun_s = time.perf_counter()
        try:
            reply = await connection.post(path, body, headers)
        except (OSError, EOFError, ValueError) as error:
            counts.failed += 1
            counts.note(f"{path}: {error!r}")
            return
        counts.latencies_s.append(time.perf_counter() - begun_s)
        if reply.status != 200:
            counts.failed += 1
            counts.note(f"{path}: {reply.status} {reply.body[:300]!r}")
            return
        counts.requests += 1
        counts.rows += len(ask.picked)
        counts.rows_by_model[ask.subject.model] += len(ask.picked)
        counts.variants[ask.phase, ask.subject.model, reply.headers.get("x-model-variant", "")] += 1
        try:
            difference = _check(ask, reply, counts.sticky)
            counts.largest_difference = max(counts.largest_difference, difference)
        except (Wrong, KeyError, ValueError, IndexError, TypeError) as error:
            counts.wrong += 1
            counts.note(f"{path}: {error!r}")


def _request(ask: Ask) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers."""
    subject = ask.subject
    rows = subject.rows[int(ask.shifted), list(ask.picked)]
    if ask.protocol == "native":
        named = [dict(zip(subject.features, row, strict=True)) for row in rows.tolist()]
        return f"/predict/{subject.model}", json.dumps({"rows": named}).encode(), {"content-type": "application/json"}
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": list(rows.shape)}
    path = f"/v2/models/{subject.model}/infer"
    if ask.protocol == "oip":
        tensor["data"] = rows.ravel().tolist()
        return path, json.dumps({"inputs": [tensor]}).encode(), {"content-type": "application/json"}
    blob = rows.tobytes()
    tensor["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", _LENGTH_HEADER: str(len(head))}
    return path, head + blob, headers


def _check(ask: Ask, reply: Reply, sticky: dict[tuple[str, str, str], str]) -> float:
    """The largest difference to the expected probabilities. Raises Wrong and what unreadable answers raise."""
    subject = ask.subject
    version, variant = reply.headers["x-model-version"], reply.headers["x-model-variant"]
    if ask.key is not None:
        first = sticky.setdefault((subject.model, ask.key, reply.headers["x-flag-revision"]), variant)
        if first != variant:
            raise Wrong(f"{ask.key} got {first} and {variant} at one revision")
    labels, probabilities = _READERS[ask.protocol](subject, reply)
    expected = {name: array[int(ask.shifted), list(ask.picked)] for name, array in subject.expected[version].items()}
    if labels.tolist() != expected["label"].tolist():
        raise Wrong(f"version {version} answered {labels.tolist()} instead of {expected['label'].tolist()}")
    if probabilities.shape != expected["probabilities"].shape:
        raise Wrong(f"probabilities of shape {probabilities.shape}")
    if np.abs(probabilities.sum(axis=1) - 1.0).max() > SUM_TOLERANCE:
        raise Wrong("probabilities that do not sum to 1")
    difference = float(np.abs(probabilities - expected["probabilities"]).max())
    if not difference <= subject.tolerance:
        raise Wrong(f"version {version} is off by {difference:.2g}")
    return difference


def _read_native(subject: Subject, reply: Reply) -> tuple[Array, Array]:
    predictions = reply.json()["predictions"]
    labels = np.array([prediction["label"] for prediction in predictions])
    names = [str(label) for label in subject.classes]
    return labels, np.array([[row["probabilities"][name] for name in names] for row in predictions])


def _read_oip(_subject: Subject, reply: Reply) -> tuple[Array, Array]:
    outputs = {output["name"]: output for output in reply.json()["outputs"]}
    label, probabilities = outputs["label"], outputs["probabilities"]
    return np.array(label["data"]), np.array(probabilities["data"]).reshape(probabilities["shape"])


def _read_binary(_subject: Subject, reply: Reply) -> tuple[Array, Array]:
    start = int(reply.headers[_LENGTH_HEADER])
    arrays: dict[str, Array] = {}
    for output in json.loads(reply.body[:start])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        dtype = {"INT64": "<i8", "FP32": "<f4"}[output["datatype"]]
        arrays[output["name"]] = np.frombuffer(reply.body[start : start + size], dtype).reshape(output["shape"])
        start += size
    return arrays["label"], arrays["probabilities"]


_READERS: Mapping[str, Callable[[Subject, Reply], tuple[Array, Array]]] = {
    "native": _read_native,
    "oip": _read_oip,
    "binary": _read_binary,
}
