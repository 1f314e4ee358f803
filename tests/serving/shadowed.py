"""A rig with a shadow that gives other answers than the version that it is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gateway.errors import InferenceFailed
from gateway.samples.pairs import PairSums, sums_from_json
from gateway.tensors import Signature, Tensors
from tests.puppet import DOUBLER, PuppetRuntime
from tests.serving.rig import Rig

NAN = 7.0


class Shifted(PuppetRuntime):
    """Doubles, then adds what it is told; gives NaN for NAN and fails on the other poison, if it is told to."""

    def __init__(self, signature: Signature = DOUBLER) -> None:
        super().__init__(signature)
        self.shift = 0.0
        self.has_faults = False
        self.poison: float | None = None

    def run(self, inputs: Tensors) -> Tensors:
        if self.poison is not None and np.any(inputs["x"] == self.poison):
            raise InferenceFailed("poison of its own")
        y = super().run(inputs)["y"] + self.shift
        return {"y": np.where(inputs["x"] == NAN, np.nan, y) if self.has_faults else y}


def rig_of(path: Path, *, rate: float = 1.0, shift: float = 0.5, cache: bool = False, **more: Any) -> Rig:
    rig = Rig(path, puppet=Shifted, cache=cache, **more)
    shadow_of(rig).shift = shift
    rig.adopt(cached=cache, shadowed=rate)
    return rig


def shadow_of(rig: Rig) -> Shifted:
    runtime = rig.runtimes["2"]
    assert isinstance(runtime, Shifted)
    return runtime


def told(rig: Rig) -> dict[str, Any]:
    (found,) = json.loads(json.dumps(rig.shadow.describe(), allow_nan=False))
    return dict(found)


def sums(rig: Rig) -> PairSums:
    (comparison,) = told(rig)["comparisons"]
    assert comparison["base"] == "1"
    return sums_from_json(comparison)
