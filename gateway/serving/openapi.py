"""The OpenAPI document: every path of the public port, its bodies typed by the signatures of the models that answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.codecs.schema_parts import Described, Schema, any_of
from gateway.codecs.schemas import Bodies, bodies_of, error_of
from gateway.serving.openapi_questions import questions

OPENAPI = "3.1.0"
_DESCRIPTION = (
    "The models that are loaded now, and how to ask them. Numbers of answers that are not finite are bare NaN and "
    "Infinity, which JSON does not know. The header x-request-timeout-ms makes a deadline shorter or longer."
)
_TITLES = {
    "native": "by feature names",
    "oip": "Open Inference Protocol v2",
    "tfs": "TensorFlow Serving, KServe V1",
    "tfs_classify": "TensorFlow Serving: classify",
    "tfs_regress": "TensorFlow Serving: regress",
    "mlflow": "MLflow",
    "torchserve": "TorchServe",
}
_REFUSED = {
    400: "the body is not what this model takes; the text names the field, what came and what was expected",
    404: "no such model, version or label here",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "the body is compressed in a way that is not read",
    431: "the head of the request is too large",
    500: "the model failed, or its answer is not finite",
    503: "over capacity, draining, or not warm yet",
    504: "the deadline has passed",
}
_KEY_REFUSED = {401: "no API key, or one that is not good", 403: "a key for other models", 429: "over the key's quota"}
# Refusals that may come before anybody knows which protocol is spoken.
_EARLY = frozenset({404, 408, 431})
_ANSWER_HEADERS = {
    "x-request-id": "the one that came, or a new one",
    "x-prediction-id": "what labels of this prediction are sent by",
    "x-model-version": "the version that answered",
    "x-model-variant": "the variant of the route that gave it",
    "x-flag-revision": "of the route",
    "x-cache": "hit, miss, shared or bypass",
}
_REQUEST_HEADERS = {
    "x-targeting-key": "whom the route decides for: the same key gets the same variant",
    "x-request-id": "comes back in the answer",
}
_LENGTH = "Inference-Header-Content-Length"
_LENGTH_TEXT = "bytes of the JSON at the begin of a body with binary tensors; not sent with a body of JSON alone"


@dataclass(frozen=True, slots=True)
class VersionView:
    """One version that answers here."""

    version: str
    described: Described


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model that answers here. versions: the default one first. labels: the names of its route's variants."""

    name: str
    versions: tuple[VersionView, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathView:
    """One row of the table of prediction paths. pattern: with ``{model}``, ``{version}``, ``{label}``."""

    pattern: str
    protocol: str
    methods: tuple[str, ...] = ("POST",)


def document(
    models: Sequence[ModelView],
    paths: Sequence[PathView],
    *,
    gateway_version: str,
    default_model: str = "",
    asks_for_keys: bool = False,
) -> dict[str, Any]:
    """The whole document. default_model: what paths mean that name none; empty if nobody knows."""
    writer = _Writer(asks_for_keys)
    for path in paths:
        for model in models:
            if "{model}" in path.pattern:
                writer.prediction(path, path.pattern.replace("{model}", model.name), model)
            elif model.name == default_model:
                writer.prediction(path, path.pattern, model)
    known = {
        "model": [model.name for model in models],
        "version": sorted({view.version for model in models for view in model.versions}),
        "label": sorted({label for model in models for label in model.labels}),
    }
    for pattern, operation in questions(known, asks_for_keys=asks_for_keys):
        writer.paths.setdefault(pattern, {}).update(operation)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Sluicegate",
            "version": gateway_version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": writer.paths,
        "components": {"schemas": writer.schemas, "responses": writer.responses, **_security_schemes(asks_for_keys)},
        **({"security": [{"key": []}, {"bearer": []}]} if asks_for_keys else {}),
    }


def _security_schemes(asks_for_keys: bool) -> dict[str, Any]:
    if not asks_for_keys:
        return {}
    schemes = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return {"securitySchemes": schemes}


class _Writer:
    """Collects the operations, and the schemas that they share."""

    def __init__(self, asks_for_keys: bool) -> None:
        self.paths: dict[str, Any] = {}
        self.schemas: dict[str, Schema] = {}
        self.responses: dict[str, Any] = {}
        self._refused = {**_REFUSED, **(_KEY_REFUSED if asks_for_keys else {})}

    def prediction(self, path: PathView, pattern: str, model: ModelView) -> None:
        """One path of one model; nothing if no version of it can be asked so."""
        kinds: list[tuple[str, Bodies]] = []
        for view in model.versions:
            bodies = bodies_of(path.protocol, view.described)
            if bodies is not None and not any(_are_alike(bodies, known) for _, known in kinds):
                kinds.append((view.version, bodies))
        if not kinds:
            return
        for method in path.methods:
            self.paths.setdefault(pattern, {})[method.lower()] = self._operation(path, pattern, model, kinds, method)

    def _operation(
        self, path: PathView, pattern: str, model: ModelView, kinds: list[tuple[str, Bodies]], method: str
    ) -> dict[str, Any]:
        name = f"{model.name}.{path.protocol}"
        requests = [
            self._named(f"{name}.{version}.request", bodies.request)
            for version, bodies in kinds
            if bodies.request is not None
        ]
        answers = [self._named(f"{name}.{version}.answer", bodies.response) for version, bodies in kinds]
        bodies_by_type: dict[str, Any] = {}
        if requests:
            example = next((bodies.example for _, bodies in kinds if bodies.example is not None), None)
            bodies_by_type["application/json"] = _body(any_of(requests), example)
        for kind, form in {kind: form for _, bodies in reversed(kinds) for kind, form in bodies.others.items()}.items():
            bodies_by_type[kind] = _body(form.schema, form.example)
        content: dict[str, Any] = {"application/json": {"schema": any_of(answers)}}
        if path.protocol == "oip":  # asked for by parameters
            content["application/octet-stream"] = {"schema": {}}
        headers = {
            header: {"description": text, "required": True, "schema": {"type": "string"}}
            for header, text in _ANSWER_HEADERS.items()
        }
        return {
            "operationId": re.sub(r"[^\w-]+", ".", f"{method.lower()}{pattern}"),
            "tags": [model.name],
            "summary": f"{model.name}: {_TITLES.get(path.protocol, path.protocol)}",
            "parameters": _parameters(pattern, model, path.protocol),
            "requestBody": {"required": True, "content": bodies_by_type},
            "responses": {
                "200": {"description": "predictions", "headers": headers, "content": content},
                **self._refusals(path.protocol),
            },
        }

    def _refusals(self, protocol: str) -> dict[str, Any]:
        own = self._named(f"error.{protocol}", error_of(protocol))
        plain = self._named("error", error_of(""))
        found = {}
        for status, text in sorted(self._refused.items()):
            schema = any_of([own, plain] if status in _EARLY else [own])
            self.responses[f"{protocol}.{status}"] = {
                "description": text,
                "content": {"application/json": {"schema": schema}},
            }
            found[str(status)] = {"$ref": f"#/components/responses/{protocol}.{status}"}
        return found

    def _named(self, name: str, schema: Schema) -> Schema:
        """A reference to a schema, which is kept under that name; equal ones of one protocol are the same."""
        self.schemas[name] = schema
        return {"$ref": f"#/components/schemas/{name}"}


def _are_alike(one: Bodies, other: Bodies) -> bool:
    """Whether two versions are asked and answer alike."""
    return (one.request, one.response, *one.others) == (other.request, other.response, *other.others)


def _body(schema: Schema, example: Any) -> dict[str, Any]:
    """A body of one content type."""
    if example is None:
        return {"schema": schema}
    golden = {"summary": "a row of the package's golden.json", "value": example}
    return {"schema": schema, "examples": {"golden": golden}}


def _parameters(pattern: str, model: ModelView, protocol: str) -> list[dict[str, Any]]:
    known = {"version": [view.version for view in model.versions], "label": list(model.labels)}
    parts = [
        {"name": name, "in": "path", "required": True, "schema": {"enum": values}}
        for name, values in known.items()
        if f"{{{name}}}" in pattern
    ]
    texts = [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in _REQUEST_HEADERS.items()
    ]
    if protocol == "oip":
        length: Schema = {"type": "integer", "minimum": 0}
        texts.append({"name": _LENGTH, "in": "header", "description": _LENGTH_TEXT, "schema": length})
    return [*parts, *texts]
