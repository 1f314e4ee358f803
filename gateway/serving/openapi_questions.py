"""The part of the OpenAPI document that is the same for all models: health, descriptions, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.codecs.schema_parts import Schema
from gateway.codecs.schemas import error_of
from gateway.samples.labels import MAX_ID_CHARS, MAX_OUTPUTS, MAX_ROW, MAX_TEXT_CHARS

_OBJECT: Schema = {"type": "object"}
_ARRAY: Schema = {"type": "array", "items": _OBJECT}
# Path, whether it is open without a key, protocol of its errors, what it tells, its form, and statuses besides 200.
_QUESTIONS: tuple[tuple[str, bool, str, str, Schema, tuple[int, ...]], ...] = (
    ("/livez", True, "", "whether the worker is alive", _OBJECT, ()),
    ("/readyz", True, "", "whether the worker should get traffic", _OBJECT, (503,)),
    ("/openapi.json", False, "", "this document", _OBJECT, (304,)),
    ("/v2", False, "oip", "the server", _OBJECT, ()),
    ("/v2/health/live", True, "oip", "whether the worker is alive", _OBJECT, ()),
    ("/v2/health/ready", True, "oip", "whether the worker should get traffic", _OBJECT, (503,)),
    ("/v2/models", False, "oip", "the models", _OBJECT, ()),
    ("/v2/models/{model}", False, "oip", "names, datatypes and shapes", _OBJECT, (404, 503)),
    ("/v2/models/{model}/ready", False, "oip", "whether the model answers", _OBJECT, (404, 503)),
    ("/v1/models", False, "tfs", "the models", _OBJECT, ()),
    ("/v1/models/{model}", False, "tfs", "the versions and their states", _OBJECT, (400, 404, 503)),
    ("/v1/models/{model}/metadata", False, "tfs", "the signature", _OBJECT, (400, 404, 503)),
    ("/ping", False, "torchserve", "whether predictions are answered", _OBJECT, (500,)),
    ("/models", False, "torchserve", "the models, a page at a time", _OBJECT, (400,)),
    ("/models/{model}", False, "torchserve", "the default version", _ARRAY, (404, 503)),
)  # fmt: skip
_STATUSES = {
    304: "the document that the client has is still good",
    400: "something of the request is wrong",
    401: "no API key, or one that is not good",
    403: "a key for other models",
    404: "no such model here",
    413: "the body is too large",
    415: "the body is compressed in a way that is not read",
    429: "over the key's quota",
    500: "not ready",
    503: "not ready",
}
_LABELS = "/v1/feedback"


def questions(models: Sequence[str], *, asks_for_keys: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths with their operations. models: the names that a path may have."""
    for path, is_open, protocol, summary, form, statuses in _QUESTIONS:
        asked = (401, 403, 429, 503) if asks_for_keys and not is_open else ()
        operation: dict[str, Any] = {
            "operationId": "get" + path.translate(str.maketrans("/.", "__", "{}")),
            "tags": ["questions"],
            "summary": summary,
            "responses": {
                "200": {"description": "told", "content": {"application/json": {"schema": form}}},
                **_refusals({*statuses, *asked, 431}, protocol),
            },
        }
        if "{model}" in path:
            if not models:
                continue
            operation["parameters"] = [
                {"name": "model", "in": "path", "required": True, "schema": {"enum": list(models)}}
            ]
        if path == "/models":
            operation["parameters"] = [
                {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 10**9 - 1}},
                {"name": "next_page_token", "in": "query", "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"}},
            ]
        if is_open and asks_for_keys:
            operation["security"] = []
        yield path, {"get": operation}
    yield _LABELS, {"post": _labels(asks_for_keys)}


def _labels(asks_for_keys: bool) -> dict[str, Any]:
    value: Schema = {"type": ["string", "number", "boolean"], "maxLength": MAX_TEXT_CHARS}
    outputs: Schema = {
        "type": "object",
        "additionalProperties": value,
        "propertyNames": {"maxLength": MAX_ID_CHARS},
        "minProperties": 1,
        "maxProperties": MAX_OUTPUTS,
    }
    whole: Schema = {"type": ["integer", "null"], "minimum": 0}
    label: Schema = {
        "type": "object",
        "properties": {
            "prediction_id": {"type": "string", "pattern": f"^[\\x00-\\x7f]{{1,{MAX_ID_CHARS}}}$"},
            "label": {"anyOf": [value, outputs], "description": "what turned out to be true, or that by output"},
            "row": {**whole, "maximum": MAX_ROW},
            "event_ts_ns": {**whole, "maximum": 2**63 - 1},
            "source": {"type": "string", "maxLength": MAX_ID_CHARS},
            "weight": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1e9},
        },
        "required": ["prediction_id", "label"],
        "additionalProperties": False,
    }
    several: Schema = {"type": "array", "items": label}
    counts: Schema = {"type": "object", "required": ["accepted", "rejected"]}
    asked = (401, 403, 429) if asks_for_keys else ()
    return {
        "operationId": "post_v1_feedback",
        "tags": ["questions"],
        "summary": "labels of predictions, one or an array of them",
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": [label, several]}}}},
        "responses": {
            "200": {"description": "kept", "content": {"application/json": {"schema": counts}}},
            **_refusals({400, 413, 415, 431, 503, *asked}, "native", early=True),
        },
    }


def _refusals(statuses: set[int], protocol: str, *, early: bool = False) -> dict[str, Any]:
    texts = {**_STATUSES, 431: "the head of the request is too large"}
    own: Schema = {"type": "object"} if protocol in ("", "oip", "torchserve") else error_of(protocol)
    found: dict[str, Any] = {}
    for status in sorted(statuses):
        found[str(status)] = {"description": texts[status]}
        if status != 304:
            schema = {"anyOf": [own, error_of("")]} if early and status == 431 else own
            found[str(status)]["content"] = {"application/json": {"schema": schema}}
    return found
