"""A sampled prediction, or several of one run: who asked what, what was answered, and why; the schema of its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mmh3
import numpy as np
import orjson

from gateway.redaction import NOTHING, Rules
from gateway.tensors import Array, Signature, Tensors, TensorSpec

SCHEMA = 1
SCHEMA_FILE = "sample.schema.json"

# The only reason whose rows may enter statistics: every prediction had the same chance to be written.
RANDOM = "random"
# Rules by which others are written too, as their rows name them.
ERROR, KEY, HEADER = "error", "key", "header"
LOW_CONFIDENCE, OUTLIER, SLOW = "low_confidence", "outlier", "slow"

_HASH_SPAN = 2**32

# Name, dtype and shape of one tensor of a prediction; and of all its inputs, and its outputs.
TensorForm = tuple[str, np.dtype[Any], tuple[int, ...]]
Form = tuple[tuple[TensorForm, ...], tuple[TensorForm, ...]]


# Its own: a route may hash the same id.
_SEED = 0x5A3B1E


def sample_hash(prediction_id: str) -> int:
    """The 32-bit hash by which sampling decides: a prediction is sampled if it is below `sampling_limit`.

    It depends on nothing but the id, so a request, its shadow and its label agree; and what a lower rate includes, a
    higher rate includes too.
    """
    return mmh3.hash(prediction_id, _SEED, False)  # by place: named arguments cost three times as much


def sampling_limit(rate: float) -> float:
    """A share *rate* (0..1) of all ids has a `sample_hash` below this."""
    return rate * _HASH_SPAN


@dataclass(slots=True, eq=False)
class Sample:
    """One answered prediction as the pipeline hands it to the sampler: references only, nothing is copied.

    inputs, outputs: arrays that nobody changes any more, first dimension *rows* (one row if the model is not
    batchable). ts_ns: Unix time. sample_rate: the rate in force, so that readers can weight. queue_s, run_s,
    batch_rows: zero where no run happened (a cache hit). cache: hit, miss, shared or bypass. variant_weight: the share
    that the split gave the variant; None if no split decided. error: the code of the error that was the answer; then
    there are no outputs, and no inputs if they could not be read. redact: what the card of the package says of its
    values.
    """

    prediction_id: str
    request_id: str
    ts_ns: int
    model: str
    version: str
    digest: str
    variant: str
    flag_revision: int
    reason: str
    sample_rate: float
    sample_reason: str
    inputs: Tensors
    outputs: Tensors
    signature: Signature
    rows: int
    queue_s: float
    run_s: float
    batch_rows: int
    cache: str
    protocol: str
    variant_weight: float | None = None
    error: str | None = None
    redact: Rules = field(default_factory=lambda: NOTHING)
    trace_id: str = ""  # empty: it was not traced

    @property
    def like(self) -> Sample:
        """What it has in common with others of a group: itself, being alone."""
        return self

    @property
    def predictions(self) -> int:
        return 1

    @property
    def identities(self) -> Sequence[tuple[str, str]]:
        """Prediction id and request id."""
        return ((self.prediction_id, self.request_id),)

    @property
    def form(self) -> Form:
        return _form(self.inputs), _form(self.outputs)


def _form(tensors: Tensors) -> tuple[TensorForm, ...]:
    return tuple([(name, array.dtype, array.shape) for name, array in tensors.items()])


@dataclass(slots=True, eq=False)
class SampleGroup:
    """Predictions of one row each that one run answered, with all but their ids and values in common.

    like: what they share; its ids and tensors are empty. identities: prediction id and request id of each. values: of
    each, what the model's only input *spec* holds, as it lies in memory. all_outputs: of the whole run; places: which
    rows of it are theirs.
    """

    like: Sample
    identities: list[tuple[str, str]]
    spec: TensorSpec
    values: list[bytes]
    all_outputs: Tensors
    places: list[int]

    @property
    def predictions(self) -> int:
        return len(self.identities)

    def cut(self, count: int) -> None:
        """Keep the first *count*."""
        for of_each in (self.identities, self.values, self.places):
            del of_each[count:]

    @property
    def form(self) -> Form:
        spec, outputs = self.spec, self.all_outputs
        one_row = (1, *spec.shape[1:])
        return ((spec.name, spec.dtype, one_row),), tuple(
            [(name, array.dtype, (1, *array.shape[1:])) for name, array in outputs.items()]
        )

    @property
    def inputs(self) -> Tensors:
        """Its one input [predictions, ...], made when it is asked for."""
        return {self.spec.name: table_of(self.values, self.spec)}

    @property
    def outputs(self) -> Tensors:
        """Its outputs [predictions, ...], likewise."""
        return {name: self.output(name) for name in self.all_outputs}

    def output(self, name: str) -> Array:
        """One of its outputs [predictions, ...]. Raises IndexError if the run has not all its rows."""
        array, places = self.all_outputs[name], self.places
        # Usually all rows of the run are drawn, or few: an index of their places costs more than all the rest.
        if len(places) == len(array) and places == list(range(len(places))):
            return array
        return array[places]


def table_of(values: Sequence[bytes], spec: TensorSpec) -> Array:
    """Rows of *spec* as they lie in memory, put under one another. Raises ValueError if they are not alike."""
    if len(set(map(len, values))) != 1:
        raise ValueError(f"rows of {spec.name} differ in length")
    return np.frombuffer(b"".join(values), spec.dtype).reshape(len(values), *spec.shape[1:])


_REASONS = (
    "random: every answered prediction had the same chance; use no others for statistics. Or the rule that wanted it: "
    "error, key, header, low_confidence, outlier, slow."
)


def json_schema() -> bytes:
    """The JSON Schema of one line, as it is shipped beside the data. Fields are only ever added."""
    text, whole, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    summary = {
        "type": "object",
        "description": "A tensor too wide to be written: its datatype, shape without the rows, sha256 of the bytes.",
        "required": ["datatype", "shape", "sha256"],
    }
    scalar = {"type": ["number", "string", "boolean", "null"]}
    named = {
        "type": "object",
        "description": "By name. null is missing (NaN); infinities are the strings Infinity and -Infinity.",
        "additionalProperties": {"anyOf": [scalar, summary]},
    }
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "prediction_id": {**text, "description": "Minted by the gateway, one per request."},
        "row": {**whole, "minimum": 0, "description": "Which row of the request this line is."},
        "rows": {**whole, "minimum": 1, "description": "Rows of the request; not all of a large one are written."},
        "request_id": {**text, "description": "The client's, for correlation only."},
        "ts_ns": {**whole, "description": "Unix time of the answer, in nanoseconds."},
        "model": text,
        "version": text,
        "digest": {**text, "description": "Which package of that version answered."},
        "variant": text,
        "flag_revision": {**whole, "description": "Revision that last changed the model's route flag."},
        "variant_weight": {
            "type": ["number", "null"],
            "description": "Share, 0 to 1, that the split gave the variant; null if none, or several, could have.",
        },
        "reason": {**text, "description": "Why the flag chose this variant."},
        "sample_rate": {**number, "minimum": 0, "maximum": 1, "description": "Share of predictions then written."},
        "sample_reason": {**text, "description": _REASONS},
        "protocol": text,
        "inputs": named,
        "outputs": named,
        "latency_us": {
            "type": "object",
            "properties": {"queue": whole, "run": whole},
            "required": ["queue", "run"],
        },
        "batch_rows": {**whole, "minimum": 0, "description": "Rows in the run that gave the answer; 0 on a hit."},
        "cache": {"enum": ["hit", "miss", "shared", "bypass"]},
    }
    # Of every row, also of those that were written before the other fields were known.
    required = [name for name in properties if name != "variant_weight"]
    properties["error"] = {"type": ["string", "null"], "description": "Code of the error that was the answer."}
    properties["redacted"] = {
        "type": "array",
        "items": text,
        "description": "Names whose values were dropped, hashed or put into ranges; what is dropped is not there.",
    }
    properties["trace_id"] = {**text, "description": "Of the request's trace; not there if it has none."}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One row of a sampled prediction",
        "type": "object",
        "properties": properties,
        "required": required,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
