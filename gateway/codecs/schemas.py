"""What the bodies of each protocol look like for one model: JSON Schemas from its signature, and an example that works.

Schemas say what is taken as far as JSON Schema can; what it cannot say (that as many values come as a shape tells)
stands in descriptions. Rarer spellings (base64 texts, columns in another order) are taken too, and left to the docs. Of
bodies that are no JSON (CSV, tensors as they lie in memory, forms) there is only said what they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gateway.codecs.schema_parts import (
    Described,
    Schema,
    any_of,
    cell_of,
    closed_columns,
    columns_of,
    exactly,
    feature_value,
    features_in_order,
    has_none,
    list_of,
    named_row,
    object_of,
    objects_of,
    one_of,
    only_or_all,
    output_value,
    required_names,
    row_of,
    rows_of,
    tensor_example,
    value_of,
    whole_of,
    width_of,
)
from gateway.tensors import BINARY_ONLY, Signature, TensorSpec


class Form(NamedTuple):
    """A body that is no JSON. example: None if none is known."""

    schema: Schema
    example: str | None = None


class Bodies(NamedTuple):
    """One protocol's bodies for one version.

    request: as JSON, None if JSON cannot hold the inputs. example: of such a request, None if none is known. others:
    requests that are no JSON, by content type.
    """

    request: Schema | None
    response: Schema
    example: Any
    others: Mapping[str, Form] = MappingProxyType({})


_CSV, _FORM, _RAW = "text/csv", "multipart/form-data", "application/octet-stream"
_BYTES: Schema = {"type": "string", "format": "binary"}


def bodies_of(protocol: str, described: Described) -> Bodies | None:
    """The bodies of the protocol of that name (`Codec.name`); None if it has no way to ask this model."""
    describe = _PROTOCOLS.get(protocol)
    found = None if describe is None else describe(described)
    if found is None or not _has_binary_only(described.signature.inputs):
        return found
    # JSON and CSV cannot hold them.
    others = {kind: form for kind, form in found.others.items() if kind != _CSV}
    return Bodies(None, found.response, None, others) if others else None


def _has_binary_only(specs: Iterable[TensorSpec]) -> bool:
    return any(spec.datatype in BINARY_ONLY for spec in specs)


def error_of(protocol: str) -> Schema:
    """The body of a refusal in the protocol of that name; of any other name, that of questions about models."""
    text: Schema = {"type": "string"}
    if protocol == "native":
        told: Schema = dict.fromkeys(("code", "message", "field", "came", "expected"), text)
        return object_of({"error": object_of(told, required=("code", "message"))})
    if protocol == "mlflow":
        return object_of({"error_code": text, "message": text})
    if protocol == "torchserve":
        return object_of({"code": {"type": "integer"}, "type": text, "message": text})
    return object_of({"error": text})


# -- native -------------------------------------------------------------------------------------------


def _native(described: Described) -> Bodies | None:
    signature, features = described.signature, features_in_order(described.signature)
    if not features:
        return None
    named = object_of(
        {f.name: feature_value(signature, f) for f in features}, required=required_names(signature), closed=True
    )
    bound: Schema = {"minItems": 1} if signature.batchable else {"minItems": 1, "maxItems": 1}
    names, cells = columns_of(signature, features)
    request: Schema = {
        "type": "object",
        "anyOf": [
            {**object_of({"rows": {"type": "array", "items": named, **bound}}, closed=True), "title": "named"},
            {
                **object_of({"columns": names, "rows": {"type": "array", "items": cells, **bound}}, closed=True),
                "title": "columns",
            },
        ],
    }
    classes = signature.classes or ()
    cell = {}
    for spec in signature.outputs:
        cell[spec.name] = cell_of(described, spec, squeezed=True)
        if spec.role == "probabilities" and signature.batchable and 0 < len(classes) == width_of(spec):
            cell[spec.name] = object_of({str(label): output_value(spec.datatype) for label in classes})
    text: Schema = {"type": "string"}
    response = {
        **dict.fromkeys(("model", "model_version", "variant", "prediction_id"), text),
        "predictions": {"type": "array", "items": object_of(cell)},
    }
    row = named_row(signature, features, described.example)
    return Bodies(request, object_of(response), None if row is None else {"rows": [row]})


# -- Open Inference Protocol --------------------------------------------------------------------------


_OIP_BINARY = (
    "the JSON document, whose inputs have the parameter binary_data_size instead of data, and behind it their tensors; "
    "the header Inference-Header-Content-Length says how long the document is. With 0 the body is the only input's row"
)


def _oip(described: Described) -> Bodies:
    signature = described.signature
    inputs = [_oip_input(signature, spec) for spec in signature.inputs]
    options: Schema = {"type": ["object", "null"]}
    wish = object_of({"name": {"enum": [spec.name for spec in signature.outputs]}, "parameters": options}, ("name",))
    request = {
        "inputs": {"type": "array", **exactly(inputs)},
        "outputs": {
            "type": ["array", "null"],
            "items": wish,
            "description": "the outputs that are wanted; all if left out",
        },
        "id": {"type": "string"},
        "parameters": options,
    }
    outputs = [  # as texts if the parameter "classification" asks for them
        object_of(
            {
                "name": {"const": spec.name},
                "datatype": {"enum": [spec.datatype, *([] if spec.datatype == "BYTES" else ["BYTES"])]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "data": {"type": "array", "items": any_of([output_value(spec.datatype), {"type": "string"}])},
                "parameters": options,
            },
            ("name", "datatype", "shape"),
        )
        for spec in signature.outputs
    ]
    text: Schema = {"type": "string"}
    response = {
        **dict.fromkeys(("model_name", "model_version", "id"), text),
        "outputs": {"type": "array", "items": {"anyOf": outputs}},
    }
    return Bodies(
        object_of(request, ("inputs",)),
        object_of(response, ("model_name", "model_version", "outputs")),
        _oip_example(described),
        {_RAW: Form({**_BYTES, "description": _OIP_BINARY})},
    )


def _oip_input(signature: Signature, spec: TensorSpec) -> Schema:
    shape = [{"type": "integer", "minimum": 1} if size == -1 else {"const": size} for size in spec.shape]
    features = closed_columns(signature, spec)
    value = features[0] if features is not None and len(features) == 1 else value_of(spec.datatype)
    data = {"type": "array", "items": value, "description": "row by row, as many values as the shape tells"}
    named: Schema = {"name": {"const": spec.name}, "datatype": {"const": spec.datatype}}
    return object_of({**named, "shape": {"type": "array", **exactly(shape)}, "data": data})


def _oip_example(described: Described) -> Any:
    if described.example is None or has_none(list(described.example.values())):
        return None
    inputs = []
    for spec in described.signature.inputs:
        value: Any = described.example[spec.name]
        shape = list(np.shape(value))
        flat = np.array(value, dtype=object).ravel().tolist()
        row = [1] if described.signature.batchable else []
        inputs.append({"name": spec.name, "datatype": spec.datatype, "shape": row + shape, "data": flat})
    if _has_binary_only(described.signature.outputs):
        return {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return {"inputs": inputs}


# -- TensorFlow Serving, KServe V1 --------------------------------------------------------------------


def _tfs(described: Described) -> Bodies:
    signature = described.signature
    forms = {"instances": rows_of(signature), "inputs": whole_of(signature)}
    if not signature.batchable:
        del forms["instances"]
    common: Schema = {"signature_name": {"enum": ["serving_default"]}}
    cells = {spec.name: cell_of(described, spec) for spec in signature.outputs}
    answers: Schema = {"outputs": {}}
    if signature.batchable:
        answers = {"predictions": {"type": "array", "items": only_or_all(cells)}, **answers}
    response = {"type": "object", "anyOf": [object_of({name: schema}) for name, schema in answers.items()]}
    return Bodies(one_of(forms, common), response, tensor_example(described, "instances"))


def _classify(described: Described) -> Bodies | None:
    spec = next((s for s in described.signature.outputs if s.role == "probabilities" and len(s.shape) == 2), None)
    pair: Schema = {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 2, "maxItems": 2}
    return _examples(described, {"type": "array", "items": pair}) if spec is not None else None


def _regress(described: Described) -> Bodies | None:
    for spec in described.signature.outputs:
        if spec.datatype not in ("BYTES", "BOOL") and spec.role == "value" and spec.shape[1:] in ((), (1,)):
            return _examples(described, output_value(spec.datatype))
    return None


def _examples(described: Described, result: Schema) -> Bodies | None:
    signature, features = described.signature, features_in_order(described.signature)
    if not features or not signature.batchable:
        return None
    request = object_of({"examples": objects_of(signature, features)})
    row = named_row(signature, features, described.example)
    response = object_of({"results": {"type": "array", "items": result}})
    return Bodies(request, response, None if row is None else {"examples": [row]})


# -- MLflow -------------------------------------------------------------------------------------------


def _mlflow(described: Described) -> Bodies:
    signature, features = described.signature, features_in_order(described.signature)
    forms: Schema = {}
    example = tensor_example(described, "instances")
    if features and signature.batchable:
        names, cells = columns_of(signature, features)
        forms["dataframe_split"] = object_of({"columns": names, "data": list_of(cells)}, ("data",))
        forms["dataframe_records"] = objects_of(signature, features)
        row = named_row(signature, features, described.example)
        if row is not None:
            example = {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
        records = forms["dataframe_records"]
        forms["instances"] = {"anyOf": [rows_of(signature), records]}
        ways = [whole_of(signature), records]
        if any(signature.input(f.name) is not None for f in features):  # columns by name look like inputs by name
            named = {f.name: list_of(feature_value(signature, f)) for f in features}
            ways.append(object_of(named, required_names(signature)))
        forms["inputs"] = {"anyOf": ways}
    else:
        if signature.batchable:
            forms["instances"] = rows_of(signature)
        forms["inputs"] = whole_of(signature)
    wanted = {"type": "array", "items": {"enum": [s.name for s in signature.outputs]}, "uniqueItems": True}
    params = object_of({"outputs": {**wanted, "minItems": 1}}, (), closed=True)
    common: Schema = {"params": {**params, "type": ["object", "null"]}}
    cells_by_name = {spec.name: cell_of(described, spec, squeezed=True) for spec in signature.outputs}
    record: Schema = {"type": "object", "properties": cells_by_name, "additionalProperties": False}
    answer: Schema = {"anyOf": [*cells_by_name.values(), record]}
    response = object_of({"predictions": {"type": "array", "items": answer} if signature.batchable else {}})
    table = {_CSV: _csv(named_row(signature, features, described.example))} if "dataframe_split" in forms else {}
    request = one_of(forms, common)
    if "dataframe_records" in forms:
        request = {"anyOf": [request, {**forms["dataframe_records"], "title": "records"}]}
    return Bodies(request, response, example, table)


def _csv(row: Schema | None) -> Form:
    """A table of features, and one row as its example."""
    schema: Schema = {"type": "string", "description": "a line of the features' names in any order, and a line per row"}
    if row is None:
        return Form(schema)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row.keys(), row.values()])
    return Form(schema, text.getvalue())


# -- TorchServe ---------------------------------------------------------------------------------------


def _torchserve(described: Described) -> Bodies:
    signature, features = described.signature, features_in_order(described.signature)
    beside = _torchserve_forms(signature)
    if not signature.batchable:
        return Bodies(whole_of(signature), {}, None, beside)
    forms: list[Schema] = []
    (spec, *others) = signature.inputs
    if not others:
        if len(spec.shape) > 1:
            forms.append({**row_of(signature, spec), "title": "one row"})
        forms.append({**list_of(row_of(signature, spec)), "title": "rows"})
    if features:
        several = objects_of(signature, features)
        forms += [{**several["items"], "title": "named features"}, {**several, "title": "named rows"}]
    elif others:
        forms.append(rows_of(signature))
    if all(feature.name != "data" for feature in features):
        forms.append({**object_of({"data": {"anyOf": list(forms)}}, closed=True), "title": "any of them as data"})
    answer = only_or_all({s.name: cell_of(described, s, squeezed=True) for s in signature.outputs})
    response: Schema = {"anyOf": [answer, {"type": "array", "items": answer}]}
    example = tensor_example(described, "data")
    if features:
        example = named_row(signature, features, described.example)
    return Bodies({"anyOf": forms}, response, example, beside)


def _torchserve_forms(signature: Signature) -> dict[str, Form]:
    """Of a model with one input also its bytes, if their number tells their shape."""
    (spec, *others) = signature.inputs
    unknown = spec.shape[signature.batchable :].count(-1)
    takes_bytes = not others and (unknown < 2 or spec.datatype == "BYTES")
    what = "the only input's row as it lies in memory (little-endian)"
    if not takes_bytes and _has_binary_only(signature.inputs):
        return {}
    part: Schema = {**_BYTES, "description": f"JSON, or {what}" if takes_bytes else "JSON"}
    form = {_FORM: Form(object_of({"data": part}))}
    return {**form, _RAW: Form({**_BYTES, "description": what})} if takes_bytes else form


_PROTOCOLS: Mapping[str, Callable[[Described], Bodies | None]] = {
    "native": _native,
    "oip": _oip,
    "tfs": _tfs,
    "tfs_classify": _classify,
    "tfs_regress": _regress,
    "mlflow": _mlflow,
    "torchserve": _torchserve,
}
