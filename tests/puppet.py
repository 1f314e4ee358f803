"""Hand-driven stand-ins for the world outside: a model that does as it is told, and a clock that stands still."""

from __future__ import annotations

import copy
import threading
from typing import Self

import numpy as np

from gateway.errors import InferenceFailed
from gateway.tensors import Signature, Tensors, TensorSpec

DOUBLER = Signature(
    inputs=(TensorSpec("x", "FP64", (-1, 1)),),
    outputs=(TensorSpec("y", "FP64", (-1, 1)),),
)
POISON = -1.0


class PuppetRuntime:
    """Doubles its input; fails on batches that hold POISON; waits while held. Remembers the rows of its batches."""

    def __init__(self, signature: Signature = DOUBLER) -> None:
        self.signature = signature
        self.batches: list[int] = []
        self._free = threading.Event()
        self._free.set()
        self.entered = threading.Semaphore(0)
        self.is_aborted = False

    def hold(self) -> None:
        """Let the next run wait until `release`."""
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def apart(self) -> Self:
        other = copy.copy(self)
        other.is_aborted = False
        return other

    def abort(self) -> None:
        self.is_aborted = True

    def run(self, inputs: Tensors) -> Tensors:
        x = inputs["x"]
        self.batches.append(len(x))
        self.entered.release()
        self._free.wait(20)
        if self.is_aborted:
            raise InferenceFailed("called off")
        if np.any(x == POISON):
            raise InferenceFailed("poison")
        return {"y": x * 2}


class FakeClock:
    """A clock in seconds that moves only when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
