"""The OpenFeature Remote Evaluation Protocol 0.3.0: any OpenFeature SDK asks which version a request would get.

The answer is what the workers do with the same flags: of a route the version, of a model's other flags their value.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import VIEWER, TokenStore, bearer, require
from gateway.control.changes import Desk
from gateway.control.keys import KeyBook
from gateway.errors import BodyTooLarge, Forbidden, InvalidFlag, InvalidInput, StoreUnavailable, TargetingKeyMissing
from gateway.flags.compile import DISABLED, SPLIT, STATIC, TARGETING_MATCH, compile_route
from gateway.flags.compile import Route as CompiledRoute
from gateway.flags.document import ROUTE, Flag, FlagDocument, Json, check_kind
from gateway.flags.keys import ApiKey, id_of
from gateway.retry import retry_after

_PARSE_ERROR, _INVALID_CONTEXT, _GENERAL = "PARSE_ERROR", "INVALID_CONTEXT", "GENERAL"
_KEY_MISSING, _NOT_FOUND = "TARGETING_KEY_MISSING", "FLAG_NOT_FOUND"
_UNKNOWN = "UNKNOWN"  # for DEFAULT and ERROR the protocol has no word
_REASONS = frozenset({STATIC, TARGETING_MATCH, SPLIT, DISABLED})
_API_KEY = "x-api-key"


class _Failed(Exception):
    """An evaluation that the protocol answers with an error of its own."""

    def __init__(self, status: int, code: str, details: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(details)
        self.status = status
        self.code = code
        self.details = details
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Question:
    """What an evaluation context says of a request. headers: by lower-case name."""

    targeting_key: str | None
    protocol: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OfrepEndpoints:
    """``/ofrep/v1/evaluate/flags`` and one flag below it. Routes are compiled once per revision."""

    desk: Desk
    tokens: TokenStore
    keys: KeyBook
    compiled: dict[str, CompiledRoute] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        path = "/ofrep/v1/evaluate/flags"
        return [Route(path, self.all, methods=["POST"]), Route(f"{path}/{{key}}", self.one, methods=["POST"])]

    async def one(self, request: Request) -> Response:
        """Evaluate one flag."""
        asker = await self._authenticate(request)
        key = request.path_params["key"]
        if asker is not None and not asker.allows(key.rpartition(".")[0]):
            raise Forbidden(f"the API key {asker.id} is not good for this model")
        try:
            question = _question(await _context(request))
            document = await self._document()
            flag = document.flags.get(key)
            if flag is None:
                raise _Failed(404, _NOT_FOUND, f"no flag {key!r}")
            return _reply(self._evaluate(document, flag, question))
        except _Failed as failed:
            return _failure(failed, key)

    async def all(self, request: Request) -> Response:
        """Evaluate all flags for one context. The ETag stands for the flags and the context."""
        asker = await self._authenticate(request)
        try:
            context = await _context(request)
            question = _question(context)
            document = await self._document()
        except _Failed as failed:
            return _failure(failed, None)
        flags = [flag for _, flag in sorted(document.flags.items()) if asker is None or asker.allows(flag.model)]
        etag = _etag(document, context, [flag.key for flag in flags])
        headers = {"etag": etag, "cache-control": "no-cache"}
        if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        told = [self._evaluate_or_tell(document, flag, question) for flag in flags]
        metadata = {**document.metadata, "revision": document.revision}
        return _reply({"flags": told, "metadata": metadata}, headers=headers)

    async def _authenticate(self, request: Request) -> ApiKey | None:
        """By an API key of the data plane, which sees the flags of its models and is returned, or by a token.

        Either may come as bearer or as ``X-API-Key``. Raises Unauthenticated, Forbidden.
        """
        secret = request.headers.get(_API_KEY, "").strip() or bearer(request.headers.get("authorization"))
        if id_of(secret):
            return await run_in_threadpool(self.keys.authenticate, secret)
        require(await run_in_threadpool(self.tokens.authenticate, secret), VIEWER)
        return None

    async def _document(self) -> FlagDocument:
        try:
            return await run_in_threadpool(self.desk.document)
        except StoreUnavailable as error:
            raise _Failed(503, _GENERAL, str(error), retry_after_s=error.retry_after_s) from error

    def _evaluate_or_tell(self, document: FlagDocument, flag: Flag, question: Question) -> Json:
        try:
            return self._evaluate(document, flag, question)
        except _Failed as failed:
            return _told(failed, flag.key)

    def _evaluate(self, document: FlagDocument, flag: Flag, question: Question) -> Json:
        try:
            found = self._decide(document, flag, question) if flag.kind == ROUTE else _option(flag)
        except TargetingKeyMissing as error:
            raise _Failed(400, _KEY_MISSING, str(error)) from error
        except InvalidFlag as error:  # written by a gateway of another age
            raise _Failed(400, _PARSE_ERROR, str(error)) from error
        metadata = {**document.metadata, **flag.metadata, "revision": flag.revision}
        return {"key": flag.key, **found, "metadata": metadata}

    def _decide(self, document: FlagDocument, flag: Flag, question: Question) -> dict[str, Json]:
        route = self.compiled.get(flag.key)
        if route is None or route.revision != flag.revision:
            route = self.compiled[flag.key] = compile_route(flag.model, flag, document.bucketing)
        # Each evaluation without a key is a request of its own, as each prediction is.
        variant, version, reason = route.decide(
            question.targeting_key, str(uuid.uuid4()), question.headers, question.protocol
        )
        return {"value": version, "variant": variant, "reason": reason if reason in _REASONS else _UNKNOWN}


def _option(flag: Flag) -> dict[str, Json]:
    """The value of a flag without rules; none where the settings decide, as if the flag were not there."""
    check_kind(flag)
    if not flag.enabled:
        return {"variant": flag.default_variant or "", "reason": DISABLED}
    if flag.default_variant is None:
        return {"variant": "", "reason": _UNKNOWN}  # a client of this protocol may insist on a variant
    value = flag.variants[flag.default_variant]
    # A client that asks for a float takes no 1.
    shown = value if isinstance(value, Mapping) else float(value)
    return {"value": shown, "variant": flag.default_variant, "reason": STATIC}


# -- what came --------------------------------------------------------------------------------------


async def _context(request: Request) -> dict[str, Json]:
    try:
        body = await requests.json_object(request)
    except InvalidInput as error:
        raise _Failed(400, _PARSE_ERROR, str(error)) from error
    except BodyTooLarge as error:
        raise _Failed(413, _GENERAL, str(error)) from error
    context = body.get("context")
    if not isinstance(context, dict):
        raise _Failed(400, _INVALID_CONTEXT, 'context: expected an object such as {"targetingKey": "user-1"}')
    return context


def _question(context: Mapping[str, Json]) -> Question:
    """What rules may read of a context: all else in it is passed over. A route's model is always its own."""
    headers: dict[str, str] = {}
    nested = {} if context.get("headers") is None else context["headers"]
    if not isinstance(nested, dict):
        raise _Failed(400, _INVALID_CONTEXT, "headers: expected an object of header names and texts")
    flat = {name.removeprefix("headers."): value for name, value in context.items() if name.startswith("headers.")}
    for name, value in {**nested, **flat}.items():
        text = _text(value, f"headers.{name}")
        if text is not None:
            headers[name.lower()] = text
    key, protocol = (_text(context.get(name), name) for name in ("targetingKey", "protocol"))
    return Question(key or None, protocol, headers)


def _text(value: Json, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _Failed(400, _INVALID_CONTEXT, f"{name}: expected a text, got {value!r}"[:200])
    return value


def _etag(document: FlagDocument, context: Mapping[str, Json], seen: list[str]) -> str:
    said = orjson.dumps([document.revision, context, seen], option=orjson.OPT_SORT_KEYS)
    return f'"{document.revision}-{hashlib.sha256(said).hexdigest()[:16]}"'


# -- what goes --------------------------------------------------------------------------------------


def _reply(document: Json, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(document), status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


def _failure(failed: _Failed, key: str | None) -> Response:
    headers = {"retry-after": str(retry_after(failed.retry_after_s, random.random()))} if failed.retry_after_s else {}
    if failed.status >= 500:
        return _reply({"errorDetails": failed.details}, status=failed.status, headers=headers)
    return _reply(_told(failed, key), status=failed.status, headers=headers)


def _told(failed: _Failed, key: str | None) -> dict[str, str]:
    named = {} if key is None else {"key": key}
    return {**named, "errorCode": failed.code, "errorDetails": failed.details}
