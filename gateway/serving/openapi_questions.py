"""The part of the OpenAPI document that is the same for all models: health, descriptions, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.codecs.schema_parts import Schema
from gateway.codecs.schemas import error_of
from gateway.samples.labels import MAX_ID_CHARS, MAX_OUTPUTS, MAX_ROW, MAX_TEXT_CHARS

_OBJECT: Schema = {"type": "object"}
_ARRAY: Schema = {"type": "array", "items": _OBJECT}
_TEXT: Schema = {"type": "string"}
_ONE = (404, 503)
# Path, whether it is open without a key, protocol of its errors, what it tells, its form, and statuses besides 200.
_QUESTIONS: tuple[tuple[str, bool, str, str, Schema, tuple[int, ...]], ...] = (
    ("/livez", True, "", "whether the worker is alive", _OBJECT, ()),
    ("/readyz", True, "", "whether the worker should get traffic", _OBJECT, (503,)),
    ("/openapi.json", False, "", "this document", _OBJECT, (304,)),
    ("/v2", False, "oip", "the server", _OBJECT, ()),
    ("/v2/health/live", True, "oip", "whether the worker is alive", _OBJECT, ()),
    ("/v2/health/ready", True, "oip", "whether the worker should get traffic", _OBJECT, (503,)),
    ("/v2/models", False, "oip", "the models", _OBJECT, ()),
    ("/v2/models/stats", False, "oip", "what was counted of all models", _OBJECT, ()),
    *(
        (f"/v2/models/{{model}}{version}{ask}", False, "oip", tells, _OBJECT, _ONE)
        for version in ("", "/versions/{version}")
        for ask, tells in (
            ("", "names, datatypes and shapes"),
            ("/ready", "whether the model answers"),
            ("/config", "the model's configuration"),
            ("/stats", "what was counted"),
        )
    ),
    ("/", False, "tfs", "whether the server is alive", _OBJECT, ()),
    ("/v1/models", False, "tfs", "the models", _OBJECT, ()),
    *(
        (f"/v1/models/{{model}}{pin}{ask}", False, "tfs", tells, _OBJECT, (400, *_ONE))
        for pin in ("", "/versions/{version}", "/labels/{label}")
        for ask, tells in (("", "the versions and their states"), ("/metadata", "the signature"))
    ),
    ("/ping", False, "torchserve", "whether predictions are answered", _OBJECT, (500,)),
    ("/health", False, "torchserve", "whether predictions are answered", _OBJECT, (500,)),
    ("/version", False, "torchserve", "the version of the gateway", _TEXT, ()),
    ("/models", False, "torchserve", "the models, a page at a time", _OBJECT, (400,)),
    ("/models/{model}", False, "torchserve", "the default version", _ARRAY, _ONE),
    ("/models/{model}/{version}", False, "torchserve", "a version; all that are loaded", _ARRAY, _ONE),
)
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
_LABELS, _INDEX = "/v1/feedback", "/v2/repository/index"


def questions(known: Mapping[str, Sequence[str]], *, asks_for_keys: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths with their operations. known: the names that the parts of a path may have: model, version, label."""
    for path, is_open, protocol, summary, form, statuses in _QUESTIONS:
        parts = [piece.partition("}")[0] for piece in path.split("{")[1:]]
        if any(not known[part] for part in parts):
            continue
        asked = (401, 403, 429, 503) if asks_for_keys and not is_open else ()
        kind = "text/plain" if form is _TEXT else "application/json"
        operation: dict[str, Any] = {
            "operationId": "get" + path.translate(str.maketrans("/.", "__", "{}")),
            "tags": ["questions"],
            "summary": summary,
            "responses": {
                "200": {"description": "told", "content": {kind: {"schema": form}}},
                **_refusals({*statuses, *asked, 431}, protocol),
            },
        }
        if parts:
            more = ["all"] if path == "/models/{model}/{version}" else []
            operation["parameters"] = [
                {
                    "name": part,
                    "in": "path",
                    "required": True,
                    "schema": {"enum": [*known[part], *(more if part == "version" else [])]},
                }
                for part in parts
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
    yield _INDEX, {"post": _index(asks_for_keys)}


def _index(asks_for_keys: bool) -> dict[str, Any]:
    ready: Schema = {"type": "boolean", "description": "only versions that can be asked"}
    body: Schema = {"type": "object", "properties": {"ready": ready}}
    asked = (401, 403, 429, 503) if asks_for_keys else ()
    return {
        "operationId": "post_v2_repository_index",
        "tags": ["questions"],
        "summary": "the versions that routes declare, and their states",
        "requestBody": {"content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "told", "content": {"application/json": {"schema": _ARRAY}}},
            **_refusals({400, 413, 431, *asked}, "oip", early=True),
        },
    }


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
