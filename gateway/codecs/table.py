"""Rows of named features, as tables and lists of objects have them: columns to checked inputs.

What is wrong is told per column: the first value of each that cannot be taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gateway.codecs.codec import Request
from gateway.codecs.large import NUMERIC
from gateway.codecs.nested import decode_base64
from gateway.codecs.numbers import name_of, to_array, to_flat
from gateway.codecs.records import named_rows
from gateway.errors import InvalidInput
from gateway.tensors import FLOATS, Array, Feature, FeatureCheck, Signature, Tensors, TensorSpec, same_rows

# Columns whose errors are told at once.
_MAX_TOLD = 8
# How a place in the table is called in messages: of a row's number (None: all of them) and a column's name.
Place = Callable[[int | None, str], str]


class Table:
    """Reads rows of named features for one version. Pure."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        order = {spec.name: index for index, spec in enumerate(signature.inputs)}
        self._datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        # In the order of the inputs and their columns, so that a row's values are the tensors' values in order.
        self._features = tuple(sorted(signature.features, key=lambda f: (order[f.input], f.column)))
        self.names = tuple([feature.name for feature in self._features])
        self._known = frozenset(self.names)
        self._input_names = frozenset(order)
        self._check = FeatureCheck(signature)
        self._matrix = matrix_input(signature)
        # That of all features, if they are one matrix of JSON numbers.
        self.matrix_datatype: str | None = None
        if self._features and self._matrix is not None and self._matrix.datatype in NUMERIC:
            self.matrix_datatype = self._matrix.datatype

    def datatype(self, name: str) -> str | None:
        """That of a feature; None for a column that is none."""
        return next((self._datatypes[f.input] for f in self._features if f.name == name), None)

    def names_features(self, value: Any) -> bool:
        """Whether some of an object's keys are features."""
        return type(value) is dict and not self._known.isdisjoint(value)

    def read_objects(self, rows: Sequence[Any], place: Place, field: str) -> Request:
        """Rows as objects by feature; a value may be a list of one. See `read`."""
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise InvalidInput(f"{field}[{index}]", name_of(row), "an object of features")
        present = set().union(*rows)
        columns = {name: [_one(row.get(name)) for row in rows] for name in self.names if name in present}
        return self.read(columns, len(rows), place)

    def read(self, columns: Mapping[str, list[Any]], rows: int, place: Place) -> Request:
        """Columns by name, each a list of so many *rows*; those that are no features are passed over.

        Raises InvalidInput, for several columns at once if several are wrong.
        """
        if not self._features:
            raise InvalidInput("body", "named columns", "tensors, since the model has no named features")
        if rows < 1:
            raise InvalidInput("body", "no rows", "at least one row")
        quick = self._quickly(columns, rows)
        if quick is not None:
            return quick
        arrays: list[Array] = []
        wrong: list[InvalidInput] = []
        for feature in self._features:
            try:
                arrays.append(self._column(feature, columns.get(feature.name), rows, place))
            except InvalidInput as error:
                wrong.append(error)
                if len(wrong) == _MAX_TOLD:
                    break
        if wrong:
            raise wrong[0] if len(wrong) == 1 else _together(wrong)
        inputs = self._inputs(arrays, rows)
        request = Request(same_rows(self._signature, inputs), inputs)
        self._check(inputs)
        return request

    def read_matrix(self, names: Sequence[str], matrix: Array) -> Request:
        """The columns of a matrix [rows, names] of `matrix_datatype`, with NaN for what is missing, as of a large body.

        Raises InvalidInput if it is not plainly right, without saying why.
        """
        spec = self._matrix
        if spec is None or matrix.ndim != 2 or matrix.shape[1] != len(names):
            raise InvalidInput("body", "another matrix", "the features of the model")
        if tuple(names) != self.names:
            place = {name: index for index, name in enumerate(names)}
            if len(place) != len(names) or not self._known <= place.keys():
                raise InvalidInput("body", "other columns", "the features of the model, each once")
            matrix = matrix.take([place[name] for name in self.names], axis=1)
        inputs = {spec.name: matrix.reshape(-1, *spec.shape[1:])}
        self._check(inputs)
        if len(matrix) == 1 and np.isfinite(matrix).all():
            return Request(1, flat=matrix.tobytes(), spec=spec)
        return Request(len(matrix), inputs)

    def read_columns(self, columns: Mapping[str, Array]) -> Request:
        """Columns of `matrix_datatype` by name; see `read_matrix`."""
        if len({column.shape for column in columns.values()}) != 1:
            raise InvalidInput("body", "columns of several lengths", "an array of as many values per column")
        return self.read_matrix(list(columns), np.stack(list(columns.values()), axis=1))

    def read_large(self, body: bytes, begin: re.Pattern[bytes]) -> Request | None:
        """Rows as objects by feature, of a large body that begins so (`records.head`), as `read_objects` would.

        None if the body is not plainly right, or the objects might be taken for something else than rows of features.
        """
        if self.matrix_datatype is None:
            return None
        found = named_rows(body, begin, self.matrix_datatype)
        if found is None or self._input_names.issuperset(found[0]):
            return None
        try:
            return self.read_matrix(*found)
        except InvalidInput:
            return None

    def _quickly(self, columns: Mapping[str, list[Any]], rows: int) -> Request | None:
        """Finite numbers of a model that takes a matrix; None for anything else, right or wrong."""
        spec = self._matrix
        if spec is None or not self._known <= columns.keys():
            return None
        table = zip(*[columns[name] for name in self.names], strict=True)
        flat = to_flat(list(chain.from_iterable(table)), spec.datatype)
        return None if flat is None else Request(rows, flat=flat.tobytes(), spec=spec)

    def _column(self, feature: Feature, values: list[Any] | None, rows: int, place: Place) -> Array:
        datatype = self._datatypes[feature.input]
        missing: Any = math.nan if datatype in FLOATS else "" if datatype == "BYTES" else None
        if values is None:
            if not feature.missing_allowed or missing is None:
                raise InvalidInput(place(None, feature.name), "nothing", "a value for every feature of the model")
            values = [missing] * rows
        if None in values:
            if not feature.missing_allowed or missing is None:
                row = values.index(None)
                raise InvalidInput(place(row, feature.name), "null", "a value (this feature may not be missing)")
            values = [missing if value is None else value for value in values]
        if datatype == "BYTES" and dict in set(map(type, values)):
            values = [decode_base64(value, place(row, feature.name)) for row, value in enumerate(values)]
        try:
            return to_array(values, datatype, "")
        except InvalidInput as error:
            at = error.field.strip("[]")
            raise InvalidInput(place(int(at) if at else None, feature.name), error.came, error.expected) from None

    def _inputs(self, arrays: list[Array], rows: int) -> Tensors:
        inputs: Tensors = {}
        start = 0
        for spec in self._signature.inputs:
            width = sum(feature.input == spec.name for feature in self._features)
            own = arrays[start : start + width]
            start += width
            shape = tuple(rows if size == -1 else size for size in spec.shape)
            if not own or math.prod(shape) != rows * width:
                raise InvalidInput(
                    "body", "named columns", f"tensors, of which {spec.name!r} is {list(spec.shape)} (-1: any size)"
                )
            inputs[spec.name] = np.stack(own, axis=1).reshape(shape)
        return inputs


def matrix_input(signature: Signature) -> TensorSpec | None:
    """The one input whose columns are, in order, all features; None for other models."""
    spec = signature.inputs[0]
    is_matrix = (
        len(signature.inputs) == 1
        and signature.batchable
        and len(spec.shape) in (1, 2)
        and math.prod(spec.shape[1:]) == len(signature.features)
        and sorted(feature.column for feature in signature.features) == list(range(len(signature.features)))
    )
    return spec if is_matrix else None


def _one(value: Any) -> Any:
    return value[0] if type(value) is list and len(value) == 1 else value


def _together(wrong: Sequence[InvalidInput]) -> InvalidInput:
    """What is wrong with several columns, as one error."""
    return InvalidInput(
        ", ".join([error.field for error in wrong]),
        "; ".join([f"{error.field}: {error.came}" for error in wrong]),
        "; ".join(dict.fromkeys([error.expected for error in wrong])),
    )
