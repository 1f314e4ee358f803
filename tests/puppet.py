"""Hand-driven stand-ins for the world outside: a model that does as it is told, and a clock that stands still."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
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
        self.aborted = False
        self.on_enter: Callable[[], None] = lambda: None  # called at the begin of each run

    def hold(self) -> None:
        """Let the next run wait until `release`."""
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def apart(self) -> Self:
        other = copy.copy(self)
        other.aborted = False
        return other

    def abort(self) -> None:
        """End the run that waits, and refuse all later ones."""
        self.aborted = True
        self._free.set()

    def run(self, inputs: Tensors) -> Tensors:
        x = inputs["x"]
        self.batches.append(len(x))
        self.entered.release()
        self.on_enter()
        self._free.wait(20)
        if self.aborted:
            raise InferenceFailed("aborted")
        if np.any(x == POISON):
            raise InferenceFailed("poison")
        return {"y": x * 2}


class FaultyRuntime(PuppetRuntime):
    """A puppet that can be told to give the wrong answer: to all, or only for batches or rows that hold POISON.

    fault: raise, nan, inf, shape, type, rows, or empty for none.
    """

    def __init__(self, signature: Signature = DOUBLER) -> None:
        super().__init__(signature)
        self.fault = ""
        self.only_poison = False
        self.bad_calls = 0

    def run(self, inputs: Tensors) -> Tensors:
        x = inputs["x"]
        y = super().run({"x": np.where(x == POISON, 0.0, x)})["y"] + 2 * np.where(x == POISON, POISON, 0.0)
        hit = x == POISON if self.only_poison else np.ones_like(x, dtype=bool)
        if not self.fault or not hit.any():
            return {"y": y}
        self.bad_calls += 1
        match self.fault:
            case "raise":
                raise InferenceFailed("boom")
            case "nan" | "inf":
                return {"y": np.where(hit, float(self.fault), y)}
            case "shape":
                return {"y": np.hstack([y, y])}
            case "type":
                return {"y": y.astype(np.float32)}
            case "rows":
                return {"y": y[:-1]}
        raise AssertionError(self.fault)


class FakeClock:
    """A clock in seconds that moves only when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
