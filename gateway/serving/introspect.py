"""What the gateway tells about itself and its models, in the Open Inference Protocol's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway import __version__
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Router
from gateway.tensors import Signature, TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
PLATFORM = "onnxruntime_onnx"
# How a model's configuration calls the datatypes: TYPE_FP32, but for texts.
_TYPES = {"BYTES": "TYPE_STRING"}
# How the repository index calls the states of a version.
_STATES = {
    "warm": "READY",
    "loading": "LOADING",
    "failed": "UNAVAILABLE",
    "quarantined": "UNAVAILABLE",
    "draining": "UNLOADING",
}


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


def model_config(live: LiveVersion, max_rows: int) -> dict[str, Any]:
    """The answer to GET /v2/models/M/config, in the words of Triton's model configuration.

    dims are without the rows where the model takes batches: max_batch_size is how many of them a request may have, 0 if
    the first dimension is not theirs.
    """
    signature = live.signature
    return {
        "name": live.model,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": max_rows if signature.batchable else 0,
        "input": [_configured(spec, signature.batchable) for spec in signature.inputs],
        "output": [_configured(spec, signature.batchable) for spec in signature.outputs],
        **({"dynamic_batching": {}} if signature.batchable else {}),
    }


def _configured(spec: TensorSpec, batchable: bool) -> dict[str, Any]:
    dims = list(spec.shape[1:] if batchable else spec.shape)
    told = {"name": spec.name, "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"), "dims": dims}
    # No dims are no configuration: a value per row is one of a vector of one that is taken apart.
    return told if dims else {**told, "dims": [1], "reshape": {"shape": []}}


def repository(
    router: Router, registry: Registry, *, ready: bool, allows: Callable[[str], bool] | None = None
) -> list[dict[str, str]]:
    """The answer to POST /v2/repository/index: what the flags declare. ready: only what can be asked."""
    told = []
    for model in models(router, allows)["models"]:
        for version, found in registry.describe(model).items():
            state = _STATES[found["state"]]
            if state == "READY" or not ready:
                told.append({"name": model, "version": version, "state": state, "reason": found["reason"]})
    return told


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
