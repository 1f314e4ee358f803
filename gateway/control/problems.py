"""How errors leave the control plane: RFC 9457 problem documents, one status per error."""

from __future__ import annotations

import random
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import errors
from gateway.retry import retry_after

CONTENT_TYPE = "application/problem+json"
_REFUSALS = {408: "request_too_slow", 431: "head_too_large", 503: "too_many_connections"}

# Looked up along the class's bases, so that a kind of error stands for its special cases.
STATUS: dict[type[errors.GatewayError], int] = {
    errors.ApprovalPending: 202,
    errors.InvalidInput: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.UnknownFlag: 404,
    errors.UnknownKey: 404,
    errors.UnknownModel: 404,
    errors.UnknownRollout: 404,
    errors.UnknownToken: 404,
    errors.UnknownVersion: 404,
    errors.UnknownWebhook: 404,
    errors.UnknownChange: 404,
    errors.ChangeRefused: 409,
    errors.RevisionConflict: 412,
    errors.BodyTooLarge: 413,
    errors.InvalidFlag: 422,
    errors.PreconditionMissing: 428,
    errors.GatewayError: 500,
    errors.QuarantineUnavailable: 503,
    errors.StoreUnavailable: 503,
}


async def on_gateway_error(_request: Request, error: Exception) -> Response:
    """Any error of ours."""
    assert isinstance(error, errors.GatewayError)
    if isinstance(error, errors.ApprovalPending):
        return _accepted(error)
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, errors.InvalidInput):
        more = {"field": error.field, "came": error.came, "expected": error.expected}
    elif isinstance(error, errors.RevisionConflict):
        more = {"current_revision": error.current_revision}
        headers = {"etag": f'"{error.current_revision}"'} if error.current_revision else {}
    elif isinstance(error, errors.VersionNotWarm):
        more = {"blocking": list(error.blocking)}
    elif isinstance(error, errors.Refused):
        headers = {"retry-after": str(retry_after(error.retry_after_s, random.random()))}
    elif isinstance(error, errors.Unauthenticated):
        headers = {"www-authenticate": 'Bearer realm="sluicegate"'}
    return problem(status, error.code, _title(type(error)), str(error), more, headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router found: an unknown path or method."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return problem(error.status_code, code, error.detail, detail, {}, dict(error.headers or {}))


async def on_unexpected(_request: Request, error: Exception) -> Response:
    """A defect of ours; the server logs it after this answer."""
    return problem(500, errors.GatewayError.code, "Internal error", f"unexpected {type(error).__name__}", {}, {})


def _accepted(error: errors.ApprovalPending) -> Response:
    """No problem, but not done either: the proposal, and where to follow it."""
    headers = {"cache-control": "no-store", "location": f"/admin/v1/changes/{error.change_id}"}
    return Response(orjson.dumps(error.change), STATUS[type(error)], headers, "application/json")


def problem(status: int, code: str, title: str, detail: str, more: dict[str, Any], headers: dict[str, str]) -> Response:
    """A problem document: type, title, status, detail, our code, and what the kind of problem adds."""
    document = {"type": f"urn:sluicegate:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return Response(orjson.dumps(document | more), status, headers, CONTENT_TYPE)


def refusal_wire(status: int, text: str, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A whole response to a connection that is refused outside of any request: what follows is closed."""
    code, title = _REFUSALS[status], HTTPStatus(status).phrase
    response = problem(status, code, title, text, {}, {})
    lines = [
        b"HTTP/1.1 %d %b" % (status, title.encode()),
        *(b"%b: %b" % pair for pair in (*response.raw_headers, *headers)),
    ]
    return b"\r\n".join([*lines, b"connection: close", b"", response.body])


def _title(kind: type[errors.GatewayError]) -> str:
    """``Version not warm`` of VersionNotWarm."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).strip()
    return words[:1].upper() + words[1:]
