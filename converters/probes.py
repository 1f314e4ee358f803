"""Rows that nobody sends but somebody could: on the thresholds of trees, and at the edges of what a number can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from converters.original import Original
from converters.rows import to_tensors
from converters.steps import steps, within
from converters.verify import Comparison, OnnxModel, Tolerance, compare
from gateway.errors import ConversionRefused
from gateway.tensors import Array, Signature

MAX_BOUNDARY_ROWS = 20_000
_ROWS_PER_VALUE = 3
_MAX_CELLS = 2_000_000
_SINGLE, _DOUBLE = np.finfo(np.float32), np.finfo(np.float64)
# Any model has to be right at these.
_SMALL: Mapping[str, float] = {
    "zero": 0.0,
    "negative zero": -0.0,
    "denormal": float(_SINGLE.smallest_subnormal),
    "negative denormal": -float(_SINGLE.smallest_subnormal),
    "smallest normal": float(_SINGLE.tiny),
}
# Only trees can be: sums of such numbers are infinite in one precision and finite in the other.
_LARGE: Mapping[str, float] = {
    "largest": float(_SINGLE.max),
    "lowest": float(_SINGLE.min),
    "infinity": np.inf,
    "negative infinity": -np.inf,
}
_LARGE_DOUBLES: Mapping[str, float] = {
    "denormal double": float(_DOUBLE.smallest_subnormal),
    "largest double": float(_DOUBLE.max),
    "lowest double": float(_DOUBLE.min),
}


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found. boundary_rows: None if no threshold could be put into a feature. refused: edges by their names
    that the original does not take, in any feature.
    """

    boundary_rows: Comparison | None
    edge_rows: Comparison | None
    refused: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return all(found is None or found.agrees for found in (self.boundary_rows, self.edge_rows))

    def plain(self) -> Mapping[str, Any]:
        """The report as it stands in the manifest."""
        return {
            "boundary_rows": None if self.boundary_rows is None else asdict(self.boundary_rows),
            "edge_rows": None if self.edge_rows is None else asdict(self.edge_rows),
            "edges_refused_by_original": list(self.refused),
        }


def probe(
    original: Original,
    model: OnnxModel,
    signature: Signature,
    frame: Any,
    tolerance: Tolerance,
    random: np.random.Generator,
) -> Probed:
    """Compare on rows of *frame* with one number put in place of another; the frame holds what the signature can."""
    boundary = boundary_rows(original, signature, frame, random)
    on_boundary = None
    if boundary is not None:
        found = model.run(to_tensors(boundary, signature))
        on_boundary = compare(original.answer(boundary), found, tolerance)
    parts, refused = [], []
    for name, rows in edge_rows(original, signature, frame):
        try:
            expected = original.answer(rows)
        except ConversionRefused:
            refused.append(name)
            continue
        parts.append(compare(expected, model.run(to_tensors(rows, signature)), tolerance))
    return Probed(on_boundary, _together(parts), tuple(refused))


def boundary_rows(original: Original, signature: Signature, frame: Any, random: np.random.Generator) -> Any:
    """Rows of *frame* in which one feature stands on a threshold, or on a neighbour of it; None if there are none.

    Thresholds behind a preparation are put back through it as far as it goes back column by column.
    """
    head, thresholds, width = _thresholds(original)
    columns = list(frame.columns)
    if head is None:
        critical = {columns[index]: values for index, values in thresholds.items() if index < len(columns)}
    else:
        critical = dict(_undone_columns(head, thresholds, width, columns))
    doubles = any(spec.datatype == "FP64" for spec in signature.inputs)
    planted = [
        (name, value) for name, values in critical.items() for value in _beside(values, doubles=doubles).tolist()
    ]
    if not planted:
        return None
    if len(planted) > MAX_BOUNDARY_ROWS:
        planted = [planted[i] for i in np.sort(random.choice(len(planted), MAX_BOUNDARY_ROWS, replace=False))]
    return _planted(frame, random.integers(0, len(frame), len(planted)), planted)


def _thresholds(original: Original) -> tuple[Any, Mapping[int, Array], int]:
    """What prepares the features of trees, None if nothing does; by feature, where trees decide; how many there are.

    Trees that are left to skl2onnx count as well: those of a bagging, a boosting, a vote, an isolation forest.
    """
    if original.ensemble is not None:
        return original.head, original.ensemble.thresholds(), original.ensemble.width
    *before, last = steps(original.estimator)
    found: dict[int, list[Array]] = {}
    for each in within(last):
        if hasattr(each, "tree_"):
            inner = each.tree_.children_left != -1
            feature, threshold = each.tree_.feature[inner], each.tree_.threshold[inner]
        elif hasattr(each, "_predictors"):
            nodes = np.concatenate([tree.nodes for stage in each._predictors for tree in stage])
            inner = nodes["is_leaf"] == 0
            feature, threshold = nodes["feature_idx"][inner], nodes["num_threshold"][inner]
        else:
            continue
        for index in np.unique(feature).tolist():
            found.setdefault(int(index), []).append(threshold[feature == index])
    thresholds = {index: np.unique(np.concatenate(parts)) for index, parts in found.items()}
    width = int(getattr(last, "n_features_in_", max(thresholds, default=-1) + 1))
    head = Pipeline([(str(index), step) for index, step in enumerate(before)]) if before else None
    return head, {index: values[np.isfinite(values)] for index, values in thresholds.items()}, width


def edge_rows(original: Original, signature: Signature, frame: Any) -> Iterator[tuple[str, Any]]:
    """By the name of the edge, rows of *frame* with that number in one feature each, and in all of them at once.

    NaN is put only where a value may be missing.
    """
    numbers = [feature for feature in signature.features if feature.kind == "numeric"]
    if not numbers:
        return
    edges = dict(_SMALL)
    if original.family == "trees":
        edges.update(_LARGE)
        if any(spec.datatype == "FP64" for spec in signature.inputs):
            edges.update(_LARGE_DOUBLES)
    places = {name: [feature.name for feature in numbers] for name in edges}
    if lacking := [feature.name for feature in numbers if feature.missing_allowed]:
        edges["missing"], places["missing"] = np.nan, lacking
    repeats = max(1, min(_ROWS_PER_VALUE, _MAX_CELLS // (len(numbers) * frame.shape[1])))
    for name, value in edges.items():
        names = places[name] * repeats
        rows = np.arange(len(names)) * 7919 % len(frame)
        planted = _planted(frame, rows, [(each, value) for each in names])
        planted.loc[len(planted)] = planted.iloc[0].where(~planted.columns.isin(places[name]), value)
        yield name, planted


def _beside(values: Array, *, doubles: bool) -> Array:
    """The values as float32 with their neighbours, and as doubles with theirs if doubles are taken."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    single = single[np.isfinite(single)]
    ways = (np.float32(-np.inf), np.float32(np.inf))
    found = [single, *(np.nextafter(single, way) for way in ways)]
    if doubles:
        found += [values, np.nextafter(values, -np.inf), np.nextafter(values, np.inf)]
    beside = np.unique(np.concatenate([each.astype(np.float64) for each in found]))
    finite: Array = beside[np.isfinite(beside)]
    return finite


def _planted(frame: Any, rows: Array, planted: list[tuple[str, float]]) -> Any:
    """Those rows, in each of them one number in one column."""
    changed = frame.iloc[rows].reset_index(drop=True)
    names = np.array([name for name, _ in planted], dtype=object)
    values = np.array([value for _, value in planted], dtype=np.float64)
    for name in dict.fromkeys(names.tolist()):
        here = names == name
        column = changed[name].to_numpy(dtype=np.float64, na_value=np.nan).copy()
        column[here] = values[here]
        changed[name] = column
    return changed


def _undone_columns(
    head: Any, thresholds: Mapping[int, Array], width: int, names: list[str]
) -> Iterator[tuple[str, Array]]:
    """By feature, the values that the preparation turns into thresholds, for columns that it keeps apart."""
    if isinstance(head, Pipeline) and len(head.steps) == 1:
        head = head.steps[0][1]
    branches: list[tuple[Any, Any, slice]] = [(head, names, slice(0, width))]
    if isinstance(head, ColumnTransformer):
        branches = [(step, columns, head.output_indices_[name]) for name, step, columns in head.transformers_]
    for step, columns, place in branches:
        own = [columns] if isinstance(columns, str) else list(columns) if isinstance(columns, list) else []
        if place.stop - place.start != len(own):
            continue
        for offset, column in enumerate(own):
            values = thresholds.get(place.start + offset)
            name = column if isinstance(column, str) else names[int(column)]
            if values is None:
                continue
            matrix = np.zeros((len(values), len(own)))
            matrix[:, offset] = values
            try:
                undone = np.asarray(_undone(step, matrix), dtype=np.float64)
            except (AttributeError, TypeError, ValueError):  # goes one way only, or holds no numbers
                continue
            yield name, np.unique(undone[:, offset])


def _undone(step: Any, matrix: Array) -> Array:
    """What a preparation makes *matrix* of. Imputers give what they are given, unless it is missing."""
    if isinstance(step, Pipeline):
        for _, each in reversed(step.steps):
            matrix = _undone(each, matrix)
        return matrix
    if step in ("passthrough", None) or type(step).__name__.endswith("Imputer"):
        return matrix
    undone: Array = step.inverse_transform(matrix)
    return undone


def _together(parts: list[Comparison]) -> Comparison | None:
    """Comparisons as one; the rows shown are numbered within their own part."""
    if not parts:
        return None
    rows = sum(part.rows for part in parts)
    return Comparison(
        rows=rows,
        tolerance=parts[0].tolerance,
        relative=parts[0].relative,
        mismatches=sum(part.mismatches for part in parts),
        ties=sum(part.ties for part in parts),
        over_tolerance=sum(part.over_tolerance for part in parts),
        max_difference=max(part.max_difference for part in parts),
        mean_difference=sum(part.mean_difference * part.rows for part in parts) / rows,
        first=tuple(row for part in parts for row in part.first)[:5],
    )
