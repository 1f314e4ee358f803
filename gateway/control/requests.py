"""What an admin request says besides its path: who sends it, on which revision it is based, why, and its body."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from gateway.control.auth import Token, TokenStore, bearer, require
from gateway.errors import BodyTooLarge, InvalidInput, PreconditionMissing, RevisionConflict
from gateway.flags.audit import Author

MAX_BODY_BYTES = 1024 * 1024
# Deeper than any rule that may be written, and less than what can be written as JSON again: a document that could be
# stored but not be told would be in force for ever.
MAX_BODY_DEPTH = 100
MAX_REASON_CHARACTERS = 1000
REASON_HEADER = "x-change-reason"
BREAK_GLASS_HEADER = "x-break-glass"

_ETAG = re.compile(r'"(\d{1,18})"')
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


async def sender(request: Request, tokens: TokenStore, scope: str) -> Token:
    """The token that the request came with. Raises Unauthenticated, Forbidden."""
    token = await run_in_threadpool(tokens.authenticate, bearer(request.headers.get("authorization")))
    require(token, scope)
    return token


def author(request: Request, token: Token) -> Author:
    """The sender as audit rows name them."""
    request_id = request.headers.get("x-request-id", "")
    return Author(
        actor=token.name,
        token_id=token.id,
        ip=request.client.host if request.client is not None else "",
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else str(uuid.uuid4()),
    )


@dataclass(frozen=True, slots=True)
class Precondition:
    """What a write is based on. must_exist: for ``If-Match: *``, any revision but not none."""

    expected_revision: int | None
    must_exist: bool = False

    def check(self, what: str, exists: bool) -> None:
        """Raises RevisionConflict if there is nothing of what must exist."""
        if self.must_exist and not exists:
            raise RevisionConflict(f"{what} does not exist", current_revision=0)


def precondition(request: Request) -> Precondition:
    """From ``If-Match: "7"``, ``If-Match: *`` or ``If-None-Match: *``. Raises PreconditionMissing, InvalidInput."""
    if_match = request.headers.get("if-match")
    if_none_match = request.headers.get("if-none-match")
    if if_match is not None:
        if if_match.strip() == "*":
            return Precondition(None, must_exist=True)
        tag = _ETAG.fullmatch(if_match.strip())
        if tag is None:
            raise InvalidInput("header If-Match", repr(if_match)[:80], 'the ETag of a GET, such as "7" with its quotes')
        return Precondition(int(tag[1]))
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise InvalidInput("header If-None-Match", repr(if_none_match)[:80], "*, to create what does not exist yet")
        return Precondition(0)
    raise PreconditionMissing(
        "send the ETag that your change is based on as If-Match, or 'If-None-Match: *' to create something new"
    )


def reason(request: Request) -> str:
    """Why, from X-Change-Reason; UTF-8. Raises InvalidInput."""
    given = text_header(request, REASON_HEADER).strip()
    if not given or len(given) > MAX_REASON_CHARACTERS:
        came = "nothing" if not given else f"{len(given)} characters"
        raise InvalidInput(
            "header X-Change-Reason", came, f"why you make this change, 1 to {MAX_REASON_CHARACTERS} characters"
        )
    return given


def break_glass(request: Request) -> bool:
    """Whether a change shall go past the approvals, from X-Break-Glass. Raises InvalidInput."""
    given = request.headers.get(BREAK_GLASS_HEADER, "false")
    if given not in ("true", "false"):
        raise InvalidInput("header X-Break-Glass", repr(given)[:80], "true or false")
    return given == "true"


def text_header(request: Request, name: str) -> str:
    """A header's text, which may be UTF-8 though HTTP itself only knows Latin-1; empty if it did not come."""
    raw = next((value for key, value in request.headers.raw if key == name.encode()), b"")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def switch(request: Request, name: str) -> bool:
    """A query parameter that is true or false. Raises InvalidInput."""
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise InvalidInput(f"query {name}", repr(given)[:80], "true or false")
    return given == "true"


def whole_number(request: Request, name: str, default: int, *, low: int, high: int) -> int:
    """A query parameter that is a number. Raises InvalidInput."""
    given = request.query_params.get(name, str(default))
    if not given.isdecimal() or len(given) > 18 or not low <= int(given) <= high:
        raise InvalidInput(f"query {name}", repr(given)[:80], f"a whole number from {low} to {high}")
    return int(given)


async def json_object(request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The body; an empty object if it may be empty and is. Raises BodyTooLarge, InvalidInput."""
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MAX_BODY_BYTES:
                raise BodyTooLarge(len(raw), MAX_BODY_BYTES)
    except ClientDisconnect:  # nobody reads the answer; a traceback in the log would be read as a defect of ours
        raise InvalidInput("body", f"{len(raw)} bytes and the end of the connection", "the whole body") from None
    if may_be_empty and not raw.strip():
        return {}
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput("body", f"text that is not JSON ({error})", "a JSON object") from error
    if not isinstance(document, dict):
        raise InvalidInput("body", f"a JSON {type(document).__name__}", "a JSON object")
    if is_deeper(document, MAX_BODY_DEPTH):
        raise InvalidInput("body", f"JSON nested more than {MAX_BODY_DEPTH} deep", "a flatter document")
    return document


def is_deeper(document: Any, levels: int) -> bool:
    """Whether objects and arrays are nested more than *levels* deep."""
    layer = [document]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return True
