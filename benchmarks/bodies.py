"""What it costs to read and write bodies: the codecs beside orjson + numpy, in interleaved rounds on one core.

Run by hand: `python benchmarks/bodies.py`. It prints a table in Markdown. Each way of a case reads or writes the same
body; times are per body, the least and the median over the rounds. Large JSON bodies of numbers are to be read twice as
fast as by orjson + numpy: the last column says of each whether its least is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from gateway.codecs.codec import BoundCodec, Codec, Request
from gateway.codecs.large import LARGE_BYTES
from gateway.codecs.mlflow import MlflowCodec
from gateway.codecs.native import NativeCodec
from gateway.codecs.numbers import flatten, parse_json, to_array, to_flat
from gateway.codecs.oip_json import OipCodec
from gateway.codecs.tfs import ClassifyCodec, PredictCodec
from gateway.codecs.torchserve import TorchServeCodec
from gateway.tensors import Array, Feature, Signature, Tensors, TensorSpec

_CORE = 0
_ROUND_S = 0.004  # of each way in each round
_BAR = 2.0  # times as fast as orjson + numpy
_CLASSES = ("setosa", "versicolor", "virginica")


@dataclass(slots=True)
class Case:
    """One body and the ways to handle it. plain: orjson and numpy alone; checked: with our checks, value by value.

    has_bar: it is a large JSON body of numbers, to be read so much faster than by *plain*.
    """

    name: str
    size_bytes: int
    codec: Callable[[], Any]
    plain: Callable[[], Any]
    checked: Callable[[], Any] | None = None
    has_bar: bool = False
    times_us: dict[str, list[float]] = field(default_factory=dict)

    def measure(self) -> None:
        """One round: each way for some milliseconds."""
        for name, way in (("plain", self.plain), ("checked", self.checked), ("codec", self.codec)):
            if way is not None:
                self.times_us.setdefault(name, []).append(_time_us(way))

    @property
    def is_met(self) -> bool:
        """Whether the bar is."""
        return min(self.times_us["plain"]) >= _BAR * min(self.times_us["codec"])

    def row(self) -> str:
        times = self.times_us
        ratios = [
            f"{min(times[name]) / min(times['codec']):.2f} / "
            f"{statistics.median(times[name]) / statistics.median(times['codec']):.2f}"
            if name in times
            else ""
            for name in ("checked", "plain")
        ]
        least, middle = min(times["codec"]), statistics.median(times["codec"])
        met = ("met" if self.is_met else "missed") if self.has_bar else ""
        return f"| {self.name} | {self.size_bytes:,} | {least:.1f} / {middle:.1f} | {ratios[0]} | {ratios[1]} | {met} |"


def _time_us(way: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    way()
    turns = max(1, round(_ROUND_S / (time.perf_counter() - begun)))
    begun = time.perf_counter()
    for _ in range(turns):
        way()
    return (time.perf_counter() - begun) / turns * 1e6


def _signature(columns: int, label: str = "INT64") -> Signature:
    return Signature(
        inputs=(TensorSpec("input", "FP32", (-1, columns)),),
        outputs=(
            TensorSpec("label", label, (-1,), "label"),
            TensorSpec("probabilities", "FP32", (-1, len(_CLASSES)), "probabilities"),
        ),
        features=tuple(Feature(f"f{i}", "input", i, missing_allowed=True) for i in range(columns)),
        classes=_CLASSES,
    )


def _bound(columns: int, label: str = "INT64") -> tuple[BoundCodec, BoundCodec]:
    signature = _signature(columns, label)
    return OipCodec().bind("m", "1", signature), NativeCodec().bind("m", "1", signature)


def _table(rows: int, columns: int, digits: str) -> list[list[float]]:
    """Rows of numbers. digits: ``short`` as a float32's shortest text, ``long`` as a double's."""
    values = np.random.default_rng(rows * columns).normal(size=(rows, columns))
    return [[float(str(np.float32(v))) if digits == "short" else v for v in row] for row in values.tolist()]


def _reading(rows: int, columns: int, *, digits: str, nested: bool) -> Case:
    """An OIP request in JSON."""
    table = _table(rows, columns, digits)
    data: Any = table if nested else [value for row in table for value in row]
    tensor = {"name": "input", "shape": [rows, columns], "datatype": "FP32", "data": data}
    body = orjson.dumps({"inputs": [tensor]})
    oip, _ = _bound(columns)

    def plain() -> Array:
        return np.array(orjson.loads(body)["inputs"][0]["data"], np.float32).reshape(rows, columns)

    def checked() -> Array:
        found = parse_json(body)["inputs"][0]["data"]
        if nested:
            return to_array(flatten(found, "data")[0], "FP32", "data").reshape(rows, columns)
        flat = to_flat(found, "FP32")
        assert flat is not None
        return np.frombuffer(flat, np.float32).reshape(rows, columns)

    name = f"read {rows:,} x {columns:,}, {'nested' if nested else 'flat'}, {digits}"
    return Case(name, len(body), lambda: oip.decode(body, {}), plain, checked, len(body) >= LARGE_BYTES)


def _reading_gaps(rows: int, columns: int) -> Case:
    values = np.random.default_rng(1).normal(size=(rows, columns))
    values[::7, 3] = np.nan
    tensor = {"name": "input", "shape": [rows, columns], "datatype": "FP32", "data": values.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    oip, _ = _bound(columns)

    def plain() -> Array:
        return np.array(json.loads(body)["inputs"][0]["data"], np.float32)

    return Case(
        f"read {rows} x {columns}, nested, some NaN (json + numpy)", len(body), lambda: oip.decode(body, {}), plain
    )


# Of each protocol, the forms in which a table of numbers is read: how a document of it is made of rows and names, and
# where in it the rows are again, as lists, objects by name, or columns.
_Rows = list[Any]
_FORMS: dict[str, tuple[Codec, Callable[[_Rows, list[str]], Any], Callable[[Any], Any]]] = {
    "native, columns": (NativeCodec(), lambda rows, names: {"columns": names, "rows": rows}, itemgetter("rows")),
    "native, named": (NativeCodec(), lambda rows, names: {"rows": _named(rows, names)}, itemgetter("rows")),
    "TensorFlow, instances": (PredictCodec(), lambda rows, _: {"instances": rows}, itemgetter("instances")),
    "TensorFlow, inputs": (PredictCodec(), lambda rows, _: {"inputs": {"input": rows}}, lambda d: d["inputs"]["input"]),
    "TensorFlow, examples": (
        ClassifyCodec(),
        lambda rows, names: {"examples": _named(rows, names)},
        itemgetter("examples"),
    ),
    "MLflow, split": (
        MlflowCodec(),
        lambda rows, names: {"dataframe_split": {"index": [*range(len(rows))], "columns": names, "data": rows}},
        lambda document: document["dataframe_split"]["data"],
    ),
    "MLflow, records": (
        MlflowCodec(),
        lambda rows, names: {"dataframe_records": _named(rows, names)},
        itemgetter("dataframe_records"),
    ),
    "MLflow, instances": (MlflowCodec(), lambda rows, _: {"instances": rows}, itemgetter("instances")),
    "MLflow, inputs": (MlflowCodec(), lambda rows, _: {"inputs": rows}, itemgetter("inputs")),
    "MLflow, inputs by column": (
        MlflowCodec(),
        lambda rows, names: {"inputs": dict(zip(names, zip(*rows, strict=True), strict=True))},
        itemgetter("inputs"),
    ),
    "TorchServe, rows": (TorchServeCodec(lambda _: 400), lambda rows, _: rows, lambda document: document),
    "TorchServe, named": (
        TorchServeCodec(lambda _: 400),
        lambda rows, names: {"data": _named(rows, names)},
        itemgetter("data"),
    ),
}


def _named(rows: _Rows, names: list[str]) -> _Rows:
    return [dict(zip(names, row, strict=True)) for row in rows]


def _reading_table(rows: int, columns: int, form: str, digits: str) -> Case:
    """A table in one of the forms, by its protocol."""
    codec, made, rows_of = _FORMS[form]
    names = [f"f{i}" for i in range(columns)]
    body = orjson.dumps(made(_table(rows, columns, digits), names))
    bound = codec.bind("m", "1", _signature(columns))

    def plain() -> Array:
        found = rows_of(orjson.loads(body))
        if type(found) is dict:
            return np.array([found[name] for name in names], np.float32).T
        if type(found[0]) is dict:
            found = [[row[name] for name in names] for row in found]
        return np.array(found, np.float32)

    def codecs_own() -> Request:
        return bound.decode(body, {"content-type": "application/json"})

    return Case(f"read {rows:,} x {columns}, {form}, {digits}", len(body), codecs_own, plain, has_bar=True)


def _reading_binary(rows: int, columns: int) -> Case:
    blob = np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float32).tobytes()
    tensor = {
        "name": "input",
        "shape": [rows, columns],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(blob)},
    }
    head = orjson.dumps({"inputs": [tensor]})
    body, headers = head + blob, {"inference-header-content-length": str(len(head))}
    oip, _ = _bound(columns)

    def plain() -> Array:
        shape = orjson.loads(body[: len(head)])["inputs"][0]["shape"]
        return np.frombuffer(body, np.float32, offset=len(head)).reshape(shape)

    return Case(f"read {rows} x {columns}, binary", len(body), lambda: oip.decode(body, headers), plain)


def _outputs(rows: int, label: str) -> Tensors:
    random = np.random.default_rng(rows)
    places = random.integers(0, len(_CLASSES), rows)
    labels: Array = places
    if label == "BYTES":
        labels = np.empty(rows, dtype=object)
        labels[:] = [_CLASSES[place].encode() for place in places]
    return {"label": labels, "probabilities": random.random((rows, len(_CLASSES))).astype(np.float32)}


def _writing(rows: int, form: str, label: str, *, gap: bool = False) -> Case:
    outputs = _outputs(rows, label)
    if gap:
        outputs["probabilities"][0, 0] = np.nan
    oip, native = _bound(4, label)
    bound = native if form == "native" else oip
    request = Request(rows, {})
    request.binary = form == "binary"
    body = bound.encode(request, outputs).body
    scores = outputs["probabilities"]

    def plain() -> bytes:
        labels = outputs["label"]
        if label == "BYTES":
            return orjson.dumps([text.decode() for text in labels.tolist()]) + _dumps(scores)
        return _dumps(labels) + _dumps(scores)

    def plain_binary() -> bytes:
        return b"".join([outputs["label"].data, scores.data])

    name = f"write {rows:,} x 3, {form}, {label}{', a NaN' if gap else ''}"
    return Case(name, len(body), lambda: bound.encode(request, outputs), plain_binary if form == "binary" else plain)


def _dumps(array: Array) -> bytes:
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def cases() -> list[Case]:
    """All that is measured."""
    reading = [
        _reading(rows, columns, digits=digits, nested=nested)
        for rows, columns, nested in (
            (1, 4, False),
            (1, 960, False),
            (1, 16_384, False),
            (32, 30, True),
            (128, 64, True),
        )
        for digits in ("short", "long")
    ]
    reading += [
        _reading_gaps(128, 64),
    ]
    reading += [_reading_table(128, 64, form, digits) for form in _FORMS for digits in ("short", "long")]
    reading += [_reading_table(2_048, 64, form, "long") for form in ("native, named", "TensorFlow, instances")]
    reading += [_reading_binary(1, 960), _reading_binary(128, 64), _reading_binary(1_024, 1_024)]
    writing = [_writing(rows, form, "INT64") for form in ("OIP", "native", "binary") for rows in (1, 32, 1_000)]
    writing += [_writing(1_000, form, "BYTES") for form in ("OIP", "native")]
    writing += [_writing(1_000, form, "INT64", gap=True) for form in ("OIP", "native")]
    return reading + writing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {_CORE} & os.sched_getaffinity(0) or os.sched_getaffinity(0))
    measured = cases()
    for _ in range(options.rounds):
        for case in measured:
            case.measure()
    print("Times are least / median. Ratios are times of the other way to the codec's: above 1, the codec is faster.\n")
    print(f"| body | bytes | codec, us | orjson + numpy with checks | orjson + numpy | {_BAR:g}x |")
    print("|---|--:|--:|--:|--:|---|")
    for case in measured:
        print(case.row())
    barred = [case for case in measured if case.has_bar]
    missed = [case.name for case in barred if not case.is_met]
    met = len(barred) - len(missed)
    print(f"\n{met} of {len(barred)} large bodies are read {_BAR:g} times as fast as by orjson + numpy.")
    if missed:
        print(f"Missed: {'; '.join(missed)}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
