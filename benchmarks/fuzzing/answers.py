"""What comes back, read strictly: HTTP/1.1 responses, their errors in the protocol's own shape, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fuzzing.targets import Port

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)")
# What uvicorn says to bytes that are no HTTP, before anybody knows whom they are for.
_NO_HTTP = b"Invalid HTTP request received."
_PROBLEM = {"type", "title", "status", "detail", "code"}


class Wrong(AssertionError):
    """The gateway broke a promise; the text says which."""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. headers: lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


def read(data: bytes, *, no_bodies: bool = False) -> tuple[list[Response], bytes]:
    """The final answers in *data*, and what is there of the next one. Raises Wrong for what is no HTTP.

    no_bodies: they answer HEAD.
    """
    found: list[Response] = []
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return found, data
        line, *fields = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(line)
        if status is None:
            raise Wrong(f"no status line: {line[:80]!r}")
        code = int(status[1])
        headers: dict[str, str] = {}
        for text in fields:
            field = _HEADER.fullmatch(text)
            if field is None:
                raise Wrong(f"no header: {text[:80]!r}")
            headers[field[1].decode().lower()] = field[2].decode("latin-1")
        if code < 200:
            data = rest
            continue
        whole = b"" if no_bodies or code in (204, 304) else _body(headers, rest)
        if whole is None:
            return found, data
        found.append(Response(code, headers, whole))
        data = rest[_length(headers, rest) if whole else 0 :]


def _body(headers: dict[str, str], rest: bytes) -> bytes | None:
    """The body if it is whole."""
    if "transfer-encoding" in headers:
        raise Wrong("an answer in chunks: all of ours have a length")
    length = _length(headers, rest)
    return rest[:length] if len(rest) >= length else None


def _length(headers: dict[str, str], rest: bytes) -> int:
    told = headers.get("content-length", "")
    if not told.isdecimal():
        raise Wrong(f"an answer without a length: content-length {told!r}")
    return int(told)


def check(response: Response, port: Port, path: str | None, method: str) -> None:
    """Raises Wrong unless the answer is one that the docs allow.

    path: of the target, with the names of its parameters; None if the bytes may have asked for anything.
    """
    status = response.status
    if status == 400 and response.body == _NO_HTTP:
        return
    if 200 <= status < 400:
        if response.body and response.headers.get("content-type", "").startswith("application/json"):
            _json(response)
        return
    if status == 401 and path == "/docs" and response.headers.get("content-type", "").startswith("text/html"):
        return  # who opens it in a browser can type a key in
    told = _json(response) if method != "HEAD" else None
    if status >= 500:
        _check_unable(response, told, path)
    if told is None:
        return
    if port == "data":
        _check_data_error(told, path, status)
    elif not is_problem(response, told) and not is_ofrep(told, path):
        raise Wrong(f"{status} that is no problem document: {response.body[:200]!r}")


def _check_unable(response: Response, told: Any, path: str | None) -> None:
    """5xx: only what the docs know."""
    status = response.status
    is_readiness = path is None or path.endswith("/ready")
    if status == 503 and is_readiness and isinstance(told, dict) and told.get("ready") is False and "name" in told:
        return  # of one model: the Open Inference Protocol says it by the status
    if status == 503 and not response.headers.get("retry-after", "").isdecimal():
        raise Wrong(f"503 without Retry-After: {response.body[:200]!r}")
    if status not in (501, 503, 504):
        raise Wrong(f"{status}: {response.body[:200]!r}")


def _check_data_error(told: Any, path: str | None, status: int) -> None:
    shapes = {name for name, has_it in _SHAPES.items() if isinstance(told, dict) and has_it(told)}
    expected = _shape_of(path) if path is not None else None
    # Before a request has reached its protocol (a head that is too large, say), errors are plain ones.
    may_be_plain = "plain" in shapes and status in (404, 405, 408, 431)
    if not shapes or (expected is not None and expected not in shapes and not may_be_plain):
        raise Wrong(f"{status} in another shape than its protocol's: {told!r}"[:300])


# How errors look, by the name of the shape.
_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "plain": lambda told: isinstance(told.get("error"), str),
    "coded": lambda told: isinstance(told.get("error"), dict) and {"code", "message"} <= told["error"].keys(),
    "MLflow": lambda told: {"error_code", "message"} <= told.keys(),
    "TorchServe": lambda told: {"code", "type", "message"} <= told.keys(),
}
# By the begin of a path; the first one counts.
_SPOKEN = (
    ("/predict/", "coded"),
    ("/v1/feedback", "coded"),
    ("/v1/", "plain"),
    ("/v2", "plain"),
    ("/invocations", "MLflow"),
    ("/models/{model}/invocations", "MLflow"),
    ("/predictions/", "TorchServe"),
    ("/explanations/", "TorchServe"),
    ("/models", "TorchServe"),
)


def _shape_of(path: str) -> str | None:
    return next((shape for begin, shape in _SPOKEN if path.startswith(begin)), None)


def is_problem(response: Response, told: Any) -> bool:
    """Whether it is a problem document that agrees with its status."""
    return (
        response.headers.get("content-type") == "application/problem+json"
        and isinstance(told, dict)
        and told.keys() >= _PROBLEM
        and told["status"] == response.status
    )


def is_ofrep(told: Any, path: str | None) -> bool:
    """Whether it is an error of the OpenFeature Remote Evaluation Protocol, where that is spoken."""
    spoken = path is None or path.startswith("/ofrep/")
    return spoken and isinstance(told, dict) and "errorDetails" in told


def _json(response: Response) -> Any:
    try:
        return json.loads(response.body)
    except ValueError:
        raise Wrong(f"{response.status} whose body is no JSON: {response.body[:200]!r}") from None
