"""Samples as the pipeline would hand them over, for tests of the log, the sampler and the monitor."""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.samples.record import RANDOM, Sample
from gateway.tensors import Array, Signature, Tensors
from tests.builders import Linear, classifier

# 2026-03-01 10:00:00 UTC
TEN_O_CLOCK_NS = 1_772_359_200 * 10**9


def sample_of(
    inputs: Tensors,
    outputs: Tensors,
    signature: Signature,
    *,
    rows: int,
    prediction_id: str = "p0",
    ts_ns: int = TEN_O_CLOCK_NS,
    model: str = "iris",
    version: str = "1",
    **fields: Any,
) -> Sample:
    """A sample of these tensors; fields: whatever else of Sample should not have its usual value."""
    return Sample(
        **{
            "prediction_id": prediction_id,
            "request_id": "r0",
            "ts_ns": ts_ns,
            "model": model,
            "version": version,
            "digest": "d1",
            "variant": "stable",
            "flag_revision": 3,
            "reason": "STATIC",
            "sample_rate": 1.0,
            "sample_reason": RANDOM,
            "inputs": inputs,
            "outputs": outputs,
            "signature": signature,
            "rows": rows,
            "queue_s": 0.000_25,
            "run_s": 0.000_1,
            "batch_rows": rows,
            "cache": "miss",
            "protocol": "native",
            **fields,
        }
    )


def linear_sample(rows: Array, linear: Linear | None = None, **fields: Any) -> Sample:
    """The sample of a real prediction of *rows* [r, n]."""
    linear = linear if linear is not None else classifier()
    inputs = np.asarray(rows, np.float32)
    fields = {"model": linear.model, "version": linear.version, **fields}
    return sample_of({"input": inputs}, linear.answer(inputs), linear.signature, rows=len(inputs), **fields)


def iris_rows(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
