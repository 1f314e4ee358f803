"""The manifest: what is written is read back, and what does not hold together is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import PackageInvalid
from gateway.models.manifest import MODEL_FILE, Manifest, parse, version_order
from gateway.tensors import Feature, Signature, TensorSpec


def manifest(**changes: Any) -> Manifest:
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1, 1))),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"),),
        features=(
            Feature("age", "input", 0, missing_allowed=True),
            Feature("height", "input", 1),
            Feature("city", "city", 0, "categorical", ("Bern", "Basel")),
        ),
        classes=(0, 1),
        batch_invariant=False,
    )
    return Manifest(**{"name": "m", "version": "3", "files": {MODEL_FILE: "0" * 64}, "signature": signature, **changes})


def test_what_is_written_is_read_back() -> None:
    written = manifest(card={"owner": "risk"}, metrics={"accuracy": 0.5})
    assert parse(written.to_json(), where="here") == written


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "../etc"}, "name must match"),
    ({"version": "a/b"}, "version must match"),
    ({"files": {}}, "files must list model.onnx"),
    ({"schema": 2}, "schema is 2"),
    ({"features": [{"name": "x", "input": "nope", "column": 0}]}, "unknown input 'nope'"),
    ({"features": [{"name": "x", "input": "input", "column": 2}]}, "column 2 of 'input', of 2"),
    ({"features": [{"name": "x", "input": "input", "column": "0"}]}, "column '0'"),
    ({"features": [{"name": n, "input": "input", "column": 1} for n in "xy"]}, "'y' shares column 1"),
    ({"inputs": []}, "at least one input"),
    ({"inputs": [{"name": "input", "datatype": "FLOAT", "shape": [-1]}]}, "datatype 'FLOAT'"),
    ({"inputs": [{"name": "input", "datatype": "FP32", "shape": [-2]}]}, "at least -1"),
    ({"inputs": [{"name": "input", "datatype": "FP32"}]}, "'shape' is missing"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_does_not_hold_together_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    plain = json.loads(manifest().to_json())
    for key, value in change.items():
        (plain["signature"] if key in ("features", "inputs") else plain)[key] = value
    with pytest.raises(PackageInvalid, match="here") as caught:
        parse(json.dumps(plain).encode(), where="here")
    assert words in str(caught.value)


@given(raw=st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_anything_else_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(PackageInvalid):
        parse(raw, where="here")


def test_versions_are_ordered_by_number_and_then_by_text() -> None:
    assert sorted(["10", "9", "b", "2", "a"], key=version_order) == ["a", "b", "2", "9", "10"]
