"""The parts of JSON Schemas that several protocols share: rows, columns and tensors of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gateway.tensors import DTYPES, FLOATS, Feature, Signature, Tensors, TensorSpec

Schema = dict[str, Any]
_FP32_END = (2 - 2**-24) * 2.0**127
# Inputs by name: of a batchable model one row of each, else whole tensors, as nested lists; None where NaN is.
Example = Mapping[str, Any]


class Described(NamedTuple):
    """What is described: a version's signature, and the outputs that come in another shape than it says."""

    signature: Signature
    misdeclared: frozenset[str] = frozenset()
    example: Example | None = None


def object_of(properties: Schema, required: tuple[str, ...] | None = None, *, closed: bool = False) -> Schema:
    """An object of these properties, of which all are required if it is not said which."""
    wanted = list(properties if required is None else required)
    found: Schema = {"type": "object", "properties": properties}
    if wanted:
        found["required"] = wanted
    return {**found, "additionalProperties": False} if closed else found


def one_of(forms: Schema, common: Schema) -> Schema:
    """An object with exactly one of *forms*, and perhaps *common*."""
    ways = [
        {
            **object_of({name: form, **common}, (name,)),
            "not": {"anyOf": [{"required": [o]} for o in forms if o != name]},
        }
        if len(forms) > 1
        else object_of({name: form, **common}, (name,))
        for name, form in forms.items()
    ]
    titled = [{**way, "title": name} for way, name in zip(ways, forms, strict=True)]
    return {"type": "object", "anyOf": titled} if len(titled) > 1 else titled[0]


def exactly(items: list[Schema]) -> Schema:
    """These items in this order."""
    size = {"minItems": len(items), "maxItems": len(items)}
    if not items:
        return {"maxItems": 0}
    return {"items": items[0], **size} if all(item == items[0] for item in items) else {"prefixItems": items, **size}


def list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def value_of(datatype: str) -> Schema:
    """One value of a tensor."""
    if datatype in ("BYTES", "BOOL"):
        return {"type": "string" if datatype == "BYTES" else "boolean"}
    if datatype == "FP32":  # up to here it is rounded to the largest number, and no further
        return {"type": "number", "exclusiveMinimum": -_FP32_END, "exclusiveMaximum": _FP32_END}
    if datatype in FLOATS:
        return {"type": "number"}
    limits = np.iinfo(DTYPES[datatype])
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def output_value(datatype: str) -> Schema:
    """One value of an output."""
    return {"type": "number"} if datatype in FLOATS else value_of(datatype)


def features_in_order(signature: Signature) -> tuple[Feature, ...]:
    """The features in the order of the inputs and their columns; empty if they are not all of every input."""
    own: dict[str, list[Feature]] = {spec.name: [] for spec in signature.inputs}
    for feature in signature.features:
        own[feature.input].append(feature)
    if any(math.prod(spec.shape[1:]) != len(own[spec.name]) for spec in signature.inputs):
        return ()
    return tuple([feature for some in own.values() for feature in sorted(some, key=lambda each: each.column)])


def may_miss(signature: Signature, feature: Feature) -> bool:
    spec = signature.input(feature.input)
    assert spec is not None  # `manifest` has checked it
    return feature.missing_allowed and (spec.datatype in FLOATS or spec.datatype == "BYTES")


def required_names(signature: Signature) -> tuple[str, ...]:
    return tuple(feature.name for feature in signature.features if not may_miss(signature, feature))


def feature_value(signature: Signature, feature: Feature) -> Schema:
    """A feature's value where it has its name: null if it may be missing."""
    value = known_value(signature, feature)
    if not may_miss(signature, feature):
        return value
    if "enum" in value:
        return {"enum": [*value["enum"], None]}
    return {**value, "type": [value["type"], "null"]}


def known_value(signature: Signature, feature: Feature) -> Schema:
    """A feature's value in a tensor."""
    spec = signature.input(feature.input)
    assert spec is not None
    if feature.categories is None or spec.datatype != "BYTES":
        return value_of(spec.datatype)
    texts = dict.fromkeys([*feature.categories, *([""] if feature.missing_allowed else [])])
    return {"enum": list(texts)}


def closed_columns(signature: Signature, spec: TensorSpec) -> list[Schema] | None:
    """The values of each column of an input, if any of them has a closed list."""
    own = [feature for feature in features_in_order(signature) if feature.input == spec.name]
    schemas = [known_value(signature, feature) for feature in own]
    return schemas if any("enum" in schema for schema in schemas) else None


def columns_of(signature: Signature, features: tuple[Feature, ...]) -> tuple[Schema, Schema]:
    """The names of all columns, and a row of their values."""
    names = [{"const": feature.name} for feature in features]
    cells = [feature_value(signature, feature) for feature in features]
    return {"type": "array", **exactly(names)}, {"type": "array", **exactly(cells)}


def objects_of(signature: Signature, features: tuple[Feature, ...]) -> Schema:
    """Rows as objects, in which columns that are no features are passed over."""
    named = {feature.name: feature_value(signature, feature) for feature in features}
    return list_of(object_of(named, required_names(signature)))


def nested_of(value: Schema, shape: tuple[int, ...]) -> Schema:
    if not shape:
        return value
    size = {"minItems": shape[0], "maxItems": shape[0]} if shape[0] >= 0 else {}
    return {"type": "array", "items": nested_of(value, shape[1:]), **size}


def row_of(signature: Signature, spec: TensorSpec) -> Schema:
    """One row of an input."""
    columns = closed_columns(signature, spec)
    if columns is not None and len(spec.shape) == 2:
        return {"type": "array", **exactly(columns)}
    return nested_of(value_of(spec.datatype) if columns is None else columns[0], spec.shape[1:])


def rows_of(signature: Signature) -> Schema:
    """All inputs as a list of rows: of the only input, or objects by input."""
    named = list_of(object_of({spec.name: _loose_row(signature, spec) for spec in signature.inputs}, closed=True))
    if len(signature.inputs) > 1:
        return named
    return {"anyOf": [*_lists(signature, signature.inputs[0]), named]}


def whole_of(signature: Signature) -> Schema:
    """All inputs as whole tensors: the only input's, or an object by input."""

    def tensor(spec: TensorSpec) -> list[Schema]:
        return _lists(signature, spec) if signature.batchable else [nested_of(value_of(spec.datatype), spec.shape)]

    named = object_of({spec.name: any_of(tensor(spec)) for spec in signature.inputs}, closed=True)
    if len(signature.inputs) > 1:
        return {**named, "description": "as many rows of each input"}
    return {"anyOf": [*tensor(signature.inputs[0]), named]}


def any_of(schemas: list[Schema]) -> Schema:
    """One of these; equal ones once."""
    distinct = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _lists(signature: Signature, spec: TensorSpec) -> list[Schema]:
    """The rows of an input; of width 1, values may stand for their rows."""
    row = row_of(signature, spec)
    return [list_of(row), *([list_of(row["items"])] if spec.shape[1:] == (1,) else [])]


def _loose_row(signature: Signature, spec: TensorSpec) -> Schema:
    row = row_of(signature, spec)
    return any_of([row, row["items"]]) if spec.shape[1:] == (1,) else row


def width_of(spec: TensorSpec) -> int:
    return spec.shape[1] if len(spec.shape) == 2 else 0


def cell_of(described: Described, spec: TensorSpec, *, squeezed: bool = False) -> Schema:
    """An output's part of one row's answer. squeezed: one number per row stands without an array around it."""
    if spec.name in described.misdeclared:
        return {}
    if spec.datatype == "BYTES" and spec.name.endswith("_bytes") and not squeezed:
        return {}  # as base64
    shape = spec.shape[1:] if described.signature.batchable else spec.shape
    if squeezed and described.signature.batchable and shape == (1,):
        shape = ()
    return nested_of(output_value(spec.datatype), shape)


def only_or_all(cells: Schema) -> Schema:
    return next(iter(cells.values())) if len(cells) == 1 else object_of(cells)


def named_row(signature: Signature, features: tuple[Feature, ...], example: Example | None) -> Schema | None:
    """An example's values by feature, in the order of the features."""
    if example is None or not features:
        return None
    flat = {name: np.array(value, dtype=object).ravel().tolist() for name, value in example.items()}
    row = {f.name: flat[f.input][f.column] for f in features}
    return None if any(row[name] is None for name in required_names(signature)) else row


def tensor_example(described: Described, form: str) -> Any:
    """A request of one row of the only input, or of all inputs by name; of a model without rows, in columns."""
    example = described.example
    if example is None or has_none(list(example.values())):
        return None
    value = next(iter(example.values())) if len(example) == 1 else dict(example)
    return {form: [value]} if described.signature.batchable else {"inputs": value}


def has_none(value: Any) -> bool:
    return any(map(has_none, value)) if isinstance(value, list) else value is None


def plain(signature: Signature, tensors: Tensors | None) -> Example | None:
    """Inputs as an example: their first row, or all of them if the model takes no rows. None for none."""
    if tensors is None:
        return None
    arrays = {name: array[0] if signature.batchable else array for name, array in tensors.items()}
    return {name: _readable(array) for name, array in arrays.items()}


def _readable(value: Any) -> Any:
    """A nested list with texts as such, null for NaN, and of a number no more digits than its datatype has."""
    if isinstance(value, np.ndarray | list):
        return [_readable(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.floating):
        return None if np.isnan(value) else float(str(value))
    return value.item() if isinstance(value, np.generic) else value
