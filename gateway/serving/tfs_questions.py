"""What TensorFlow Serving and KServe V1 tell of models, on the paths that they share: both find their own keys.

Source: tensorflow/serving, apis/get_model_status.proto and model_servers/http_rest_api_handler.cc; kserve, V1 protocol.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.codecs.tfs import tfs_error
from gateway.errors import GatewayError, InvalidInput, MethodNotAllowed, UnknownVersion, Unsupported
from gateway.serving import introspect
from gateway.serving.keygate import key_of
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.replies import error_headers, status_of
from gateway.serving.router import Router, unknown_model
from gateway.tensors import Signature, TensorSpec

# From what the registry says of a version to the state and the error code of a servable.
_STATES = {
    "warm": ("AVAILABLE", "OK", ""),
    "loading": ("LOADING", "OK", ""),
    "draining": ("UNLOADING", "OK", ""),
    "failed": ("END", "INTERNAL", "the version could not be loaded"),
    "quarantined": ("END", "FAILED_PRECONDITION", "the version is quarantined"),
}
_DTYPES = {
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
_QUESTION = re.compile(r"/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?(/metadata)?")
_PLACES = ("", "/versions/{version}", "/labels/{label}")


class TfsQuestions:
    """GETs about models; each is short and never blocks."""

    def __init__(self, router: Router, registry: Registry) -> None:
        self._router = router
        self._registry = registry

    def routes(self) -> list[Route]:
        """The paths that they are asked by, and at the end all others below /v1/models."""
        return [
            Route("/", self.alive),
            Route("/v1/models", self.models),
            *(Route(f"/v1/models/{{model}}{place}", self.status) for place in _PLACES),
            *(Route(f"/v1/models/{{model}}{place}/metadata", self.metadata) for place in _PLACES),
            *(Route(f"/v1/models/{{model}}{place}:explain", self.explain, methods=["POST"]) for place in _PLACES),
            Route("/v1/models/{rest:path}", self.malformed, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]

    async def alive(self, request: Request) -> Response:
        """KServe V1's question to the server."""
        return _json({"status": "alive"})

    async def models(self, request: Request) -> Response:
        """KServe V1's list of models; with a key that is not good for all, those that it is good for."""
        key = key_of(request.scope)
        return _json(introspect.models(self._router, None if key is None else key.allows))

    async def status(self, request: Request) -> Response:
        """The versions of a model and their states; for KServe V1 also its name and whether it is ready."""
        try:
            return _json(self._status(request))
        except GatewayError as error:
            return _refusal(error)

    def _status(self, request: Request) -> dict[str, Any]:
        model = request.path_params["model"]
        if model not in self._router.known:
            raise unknown_model(model)
        states = self._registry.describe(model)
        wanted: str | None = request.path_params.get("version")
        if "label" in request.path_params:
            wanted = self._router.labelled(model, request.path_params["label"]).version
        if wanted is not None and wanted not in states:
            raise UnknownVersion(f"version {wanted!r} of model {model!r} is not loaded here")
        shown = sorted(states, key=_newest_first) if wanted is None else [wanted]
        asked = self._registry.find(model, wanted) if wanted is not None else self._default(model)
        statuses = [_status(version, states[version]["state"]) for version in shown]
        return {"model_version_status": statuses, "name": model, "ready": asked is not None}

    def _default(self, model: str) -> LiveVersion | None:
        adopted = self._router.adopted.get(model)
        return self._registry.find(model, adopted.route.default_version) if adopted is not None else None

    async def metadata(self, request: Request) -> Response:
        """The signature of a version, as TensorFlow's SignatureDef."""
        parts = request.path_params
        model = parts["model"]
        try:
            if "label" in parts:
                live = self._router.labelled(model, parts["label"])
            else:
                version = parts.get("version")
                live = self._router.default(model) if version is None else self._router.pinned(model, version)
        except GatewayError as error:
            return _refusal(error)
        return _json(_metadata(live))

    async def explain(self, request: Request) -> Response:
        """Explanations, which there are none of."""
        return _refusal(Unsupported("explanations are not offered here"))

    async def malformed(self, request: Request) -> Response:
        """What else is below these paths, in TensorFlow Serving's words."""
        if request.method != "GET" and _QUESTION.fullmatch(request.url.path):
            return _refusal(MethodNotAllowed(request.method, "GET"))
        text = f"Malformed request: {request.method} {request.url.path}"
        return _json({"error": text}, status_of(InvalidInput("path", "another one", "one that is known")))


def _status(version: str, state: str) -> dict[str, Any]:
    name, code, message = _STATES[state]
    return {"version": version, "state": name, "status": {"error_code": code, "error_message": message}}


def _newest_first(version: str) -> tuple[int, str]:
    return (-int(version), "") if version.isascii() and version.isdigit() and len(version) < 20 else (1, version)


def _metadata(live: LiveVersion) -> dict[str, Any]:
    spec = {"name": live.model, "signature_name": "", "version": live.version}
    signatures = {"signature_def": {"serving_default": _signature_def(live.signature)}}
    return {"model_spec": spec, "metadata": {"signature_def": signatures}}


def _signature_def(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {spec.name: _tensor(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor(spec) for spec in signature.outputs},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in spec.shape]
    dtype = _DTYPES.get(spec.datatype, f"DT_{spec.datatype}")
    return {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": f"{spec.name}:0"}


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _refusal(error: GatewayError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(tfs_error(error), status_of(error), headers, media_type="application/json")
