"""The table of protocols: each path by which predictions are asked for, and its codec. Both doors use it."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.codecs.codec import Codec
from gateway.codecs.mlflow import MlflowCodec
from gateway.codecs.native import NativeCodec
from gateway.codecs.oip_json import OipCodec
from gateway.codecs.tfs import ClassifyCodec, PredictCodec, RegressCodec
from gateway.codecs.torchserve import TorchServeCodec
from gateway.serving.replies import status_of
from gateway.serving.target import Label, PredictionPath, Unnamed


def prediction_paths() -> tuple[PredictionPath, ...]:
    """All rows of the table. Of two that fit a path, the first one is meant."""
    oip, mlflow, torchserve = OipCodec(), MlflowCodec(), TorchServeCodec(status_of)
    verbs: dict[str, Codec] = {"predict": PredictCodec(), "classify": ClassifyCodec(), "regress": RegressCodec()}
    return (
        PredictionPath("/predict/{model}", NativeCodec()),
        PredictionPath("/v2/models/{model}/infer", oip),
        PredictionPath("/v2/models/{model}/versions/{version}/infer", oip),
        *(
            PredictionPath(f"/v1/models/{model}:{verb}", codec)
            for verb, codec in verbs.items()
            for model in ("{model}", "{model}/versions/{version}", "{model}/labels/{label}")
        ),
        PredictionPath("/invocations", mlflow),
        PredictionPath("/models/{model}/invocations", mlflow),
        PredictionPath("/predictions/{model}", torchserve, ("POST", "PUT")),
        PredictionPath("/predictions/{model}/{version}", torchserve, ("POST", "PUT")),
    )


def patterns_of(paths: Sequence[PredictionPath]) -> dict[tuple[str, bool, str], str]:
    """The patterns by what a call knows of the one that it came by, as `kind_of` tells it."""
    return {
        (
            path.codec.name,
            "{model}" in path.pattern,
            next((part for part in ("version", "label") if f"{{{part}}}" in path.pattern), ""),
        ): path.pattern
        for path in paths
    }


def kind_of(codec: str, model: str, version: str | None) -> tuple[str, bool, str]:
    """What tells the pattern of a target: its protocol, whether it names a model, the part that pins a version."""
    pin = "" if version is None else "label" if isinstance(version, Label) else "version"
    return codec, not isinstance(model, Unnamed), pin


def codecs_of(paths: Sequence[PredictionPath]) -> tuple[Codec, ...]:
    """The codecs in a table, each once."""
    return tuple({path.codec.name: path.codec for path in paths}.values())
