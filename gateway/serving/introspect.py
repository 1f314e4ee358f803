"""What the gateway tells about itself and its models, in the Open Inference Protocol's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway import __version__
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Router
from gateway.tensors import Signature, TensorSpec

EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "onnxruntime_onnx"


def server_metadata() -> dict[str, Any]:
    """The answer to GET /v2."""
    return {"name": "sluicegate", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(live: LiveVersion, registry: Registry) -> dict[str, Any]:
    """The answer to GET /v2/models/M: names, datatypes and shapes; -1 stands for any size."""
    return {
        "name": live.model,
        "versions": registry.warm_versions(live.model),
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in live.signature.inputs],
        "outputs": [_tensor(spec) for spec in live.signature.outputs],
        "parameters": _names(live.signature),
    }


def models(router: Router, allows: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """The answer to GET /v2/models: all models that the flags release, or those of them that *allows* allows."""
    return {"models": sorted(filter(allows, router.known) if allows is not None else router.known)}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _names(signature: Signature) -> dict[str, Any]:
    """What the tensors' shapes do not tell: the features that are an input's columns, in order, and the classes."""
    columns = sorted(signature.features, key=lambda feature: feature.column)
    features = {spec.name: [f.name for f in columns if f.input == spec.name] for spec in signature.inputs}
    names: dict[str, Any] = {"features": features} if signature.features else {}
    return names if signature.classes is None else {**names, "classes": list(signature.classes)}
