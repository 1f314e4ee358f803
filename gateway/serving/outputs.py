"""Whether what a model gave is what its signature says: finite numbers of the right shape and type.

Asked once per run, and only of versions whose answers can be compared with those of another one.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from gateway.tensors import Array, Signature, Tensors

# Up to so many values Python's own sum is quicker than an array function.
_FEW = 96
_NONE: frozenset[int] = frozenset()


class OutputCheck:
    """The check of one version's runs. Made once; may be called on any thread.

    misdeclared: outputs whose shape the signature does not tell.
    """

    __slots__ = ("_expected", "_float_inputs", "_skip")

    def __init__(self, signature: Signature, misdeclared: frozenset[str] = frozenset()) -> None:
        self._skip = skip = 1 if signature.batchable else 0
        self._expected = [
            (spec.name, spec.dtype, None if spec.name in misdeclared else spec.shape[skip:], spec.dtype.kind == "f")
            for spec in signature.outputs
        ]
        self._float_inputs = [spec.name for spec in signature.inputs if spec.dtype.kind == "f"]

    def bad_rows(self, inputs: Tensors, outputs: Tensors, rows: int) -> frozenset[int]:
        """The rows whose answer is no good: not finite, or all of them if a shape or type is wrong.

        outputs: as many rows as *inputs*, if the model is batchable; else all is one row. NaN is good where the same
        row of the inputs holds NaN: what is missing may make the answer missing.
        """
        bad, skip = _NONE, self._skip
        for name, dtype, shape, is_float in self._expected:
            array = outputs[name]
            found = array.shape[skip:]
            if found != shape and shape is not None and not _fits(found, shape):
                return frozenset(range(rows))
            if array.dtype is not dtype and array.dtype != dtype:
                return frozenset(range(rows))
            if is_float and not (
                # A sum is finite only if all of its parts are; the other way round it is looked again.
                isfinite(sum(array.ravel().tolist())) if array.size <= _FEW else np.isfinite(array).all()
            ):
                bad |= self._find(inputs, array, rows)
        return bad

    def _find(self, inputs: Tensors, array: Array, rows: int) -> frozenset[int]:
        table = array.reshape(rows, -1)
        bad = ~np.isfinite(table).all(axis=1)
        for name in self._float_inputs:
            if not inputs[name].size:
                continue
            missing = np.isnan(inputs[name].reshape(rows, -1)).any(axis=1)
            bad &= ~(missing & ~np.isinf(table).any(axis=1))
        return frozenset(np.flatnonzero(bad).tolist())


def misdeclared(signature: Signature, outputs: Tensors) -> frozenset[str]:
    """The outputs that a model gives in another shape than its signature says, as it may well: converters guess.

    outputs: of a run on rows that are known to be good; may be empty.
    """
    skip = 1 if signature.batchable else 0
    return frozenset(
        spec.name
        for spec in signature.outputs
        if spec.name in outputs and not _fits(outputs[spec.name].shape[skip:], spec.shape[skip:])
    )


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(found) == len(shape) and all(want in (-1, size) for want, size in zip(shape, found, strict=True))
