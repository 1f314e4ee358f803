"""The Open Inference Protocol's classification extension: instead of an output's values, its highest ones as texts.

Source: triton-inference-server/server, docs/protocol/extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.codecs.texts import value_texts
from gateway.tensors import Array


def highest(array: Array, count: int, labels: Sequence[str] | None, *, batchable: bool) -> Array:
    """The *count* highest values of each row, or all if there are fewer, as ``value:index`` or ``value:index:label``.

    array: numbers; its first dimension are the rows if batchable. labels: what the indices stand for. Returns bytes of
    shape [rows, count], or [count] if not batchable. Of equal values the first comes first, and NaN comes last.
    """
    table = array.reshape(array.shape[0] if batchable else 1, -1)
    rows, width = table.shape
    ranked = table if table.dtype.kind != "f" else np.where(np.isnan(table), -np.inf, table)
    # From behind, so that of equal values the first is the last one, and then turned around.
    places = width - 1 - np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    values = value_texts(np.take_along_axis(table, places, axis=1))
    ends = [b":%d" % index if labels is None else f":{index}:{labels[index]}".encode() for index in range(width)]
    texts = np.empty(len(values), dtype=object)
    texts[:] = [value + ends[place] for value, place in zip(values, places.ravel().tolist(), strict=True)]
    return texts.reshape((rows, places.shape[1]) if batchable else (places.shape[1],))
