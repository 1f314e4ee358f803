"""How an answer travels over HTTP: its status and its headers, rendered the same for every door of the data plane."""

from __future__ import annotations

import json
import random
from http import HTTPStatus
from typing import NamedTuple

from gateway import errors
from gateway.codecs.codec import JSON_HEADERS, Headers
from gateway.retry import retry_after

STATUS: dict[type[errors.GatewayError], int] = {
    errors.InvalidInput: 400,
    errors.TargetingKeyMissing: 400,
    errors.KeyUnknown: 401,
    errors.Forbidden: 403,
    errors.KeyOutOfScope: 403,
    errors.UnknownModel: 404,
    errors.UnknownVersion: 404,
    errors.UnknownLabel: 404,
    errors.MethodNotAllowed: 405,
    errors.BodyTooSlow: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.CallerLeft: 499,
    errors.InferenceFailed: 500,
    errors.InvalidOutput: 500,
    errors.Unsupported: 501,
    errors.QuotaExceeded: 429,
    errors.QueueFull: 503,
    errors.Shed: 503,
    errors.OverShare: 503,
    errors.DeadlineUnreachable: 503,
    errors.TooManyInFlight: 503,
    errors.TooManyBytesInFlight: 503,
    errors.Draining: 503,
    errors.ModelNotReady: 503,
    errors.VersionShut: 503,
    errors.SampleLogUnavailable: 503,
    errors.LabelsUnavailable: 503,
    errors.KeysUnavailable: 503,
    errors.DeadlineExceeded: 504,
}


class Block(NamedTuple):
    """The headers that say who answered, as pairs, and as the bytes around them in an answer of JSON.

    after_id: from the end of the last id to the end of what the codec says of the body; before_length: to the number
    of the content-length.
    """

    pairs: Headers
    after_id: bytes
    before_length: bytes


def block(pairs: Headers) -> Block:
    after_id = b"\r\n" + _wire(pairs) + _wire(JSON_HEADERS)
    return Block(pairs, after_id, after_id + b"content-length: ")


def _wire(pairs: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in pairs])


NO_HEADERS = block(())


class Reply(NamedTuple):
    """An answer for a door to send.

    error: what went wrong, None if nothing did. prediction_id: empty if none was minted. route: the headers that say
    who answered. content: the headers that the codec gave to the body.
    """

    error: errors.GatewayError | None
    request_id: str
    prediction_id: str
    route: Block
    content: Headers
    body: bytes


def status_of(error: errors.GatewayError | None) -> int:
    """200 for no error; an error that has no row is ours to explain."""
    return 200 if error is None else STATUS.get(type(error), 500)


def error_headers(error: errors.GatewayError | None) -> Headers:
    """When a client may ask again, which method or encoding another answer would take, and how to say who asks."""
    if isinstance(error, errors.Refused):
        return ((b"retry-after", b"%d" % retry_after(error.retry_after_s, random.random())),)
    if isinstance(error, errors.MethodNotAllowed):
        return ((b"allow", error.allowed.encode()),)
    if isinstance(error, errors.UnsupportedEncoding):
        return ((b"accept-encoding", b"gzip, deflate"),)
    if isinstance(error, errors.KeyUnknown):
        return ((b"www-authenticate", b'Bearer realm="sluicegate"'),)
    return ()


def header_pairs(reply: Reply) -> list[tuple[bytes, bytes]]:
    """All headers of a reply, in the order of the contract, content-length last."""
    pairs = [(b"x-request-id", reply.request_id.encode())]
    if reply.prediction_id:
        pairs.append((b"x-prediction-id", reply.prediction_id.encode()))
    pairs += reply.route.pairs
    pairs += reply.content
    pairs += error_headers(reply.error)
    pairs.append((b"content-length", b"%d" % len(reply.body)))
    if isinstance(reply.error, errors.BodyTooSlow):  # what still comes of the body is not the next request
        pairs.append((b"connection", b"close"))
    return pairs


def refusal_wire(status: int, text: str, headers: Headers) -> bytes:
    """A whole HTTP/1.1 response to a connection that is refused before any request: what follows is closed."""
    body = json.dumps({"error": text}).encode()
    end = (*headers, (b"content-length", b"%d" % len(body)))
    return _status_line(status) + _wire(JSON_HEADERS) + _wire(end) + _CLOSE + b"\r\n" + body


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES = {status: _status_line(status) for status in {200, 500, *STATUS.values()}}
_CLOSE = b"connection: close\r\n"
# The end of the head of an answer, by the length of the body; most answers are short.
_LENGTHS = tuple(b"%d\r\n\r\n" % length for length in range(2048))
_BEFORE_ID = b"HTTP/1.1 200 OK\r\nx-request-id: "
_BETWEEN_IDS = b"\r\nx-prediction-id: "
_BEFORE_REFUSED_ID: dict[type[errors.GatewayError], bytes] = {
    kind: _STATUS_LINES[status] + b"x-request-id: "
    for kind, status in STATUS.items()
    if issubclass(kind, errors.Refused)
}


def ok_json_wire(request_id: str, prediction_id: str, route: Block, body: bytes) -> bytes:
    """A whole HTTP/1.1 response of JSON on a connection that stays open: what wire_bytes gives, for less."""
    length = len(body)
    return b"".join(
        (
            _BEFORE_ID,
            request_id.encode(),
            _BETWEEN_IDS,
            prediction_id.encode(),
            route.before_length,
            _LENGTHS[length] if length < 2048 else b"%d\r\n\r\n" % length,
            body,
        )
    )


def refused_json_wire(
    error: errors.GatewayError, request_id: str, prediction_id: str, route: Block, body: bytes
) -> bytes | None:
    """As ok_json_wire, of a refusal that may be tried again: a worker that is asked for too much writes little else.

    None: it is no such refusal. prediction_id: empty if none was minted.
    """
    before_id = _BEFORE_REFUSED_ID.get(type(error))
    if before_id is None or not isinstance(error, errors.Refused):
        return None
    length = len(body)
    return b"".join(
        (
            before_id,
            request_id.encode(),
            _BETWEEN_IDS + prediction_id.encode() if prediction_id else b"",
            route.after_id,
            b"retry-after: %d\r\ncontent-length: " % retry_after(error.retry_after_s, random.random()),
            _LENGTHS[length] if length < 2048 else b"%d\r\n\r\n" % length,
            body,
        )
    )


def wire_bytes(reply: Reply, *, keep_alive: bool) -> bytes:
    """A whole HTTP/1.1 response: byte for byte what uvicorn writes for header_pairs and the same body."""
    pairs = header_pairs(reply)
    return b"%b%b%b\r\n%b" % (
        _STATUS_LINES[status_of(reply.error)],
        _wire(tuple(pairs)),
        b"" if keep_alive or pairs[-1][0] == b"connection" else _CLOSE,
        reply.body,
    )
