"""What a package takes and gives: which columns are features, in which tensors they go, and in which number type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from converters.original import Original
from converters.rows import is_text
from gateway.errors import InvalidInput
from gateway.tensors import MAX_FEATURES, Feature, Role, Signature, TensorSpec

MATRIX_INPUT = "input"
# Asked to see what the original gives; some answer no single row.
_TRIED_ROWS = 2


def choose_features(original: Original, frame: Any, *, target: str | None) -> tuple[Any, list[str]]:
    """The columns of *frame* that are the model's features, in its order, and the names of those that are left over.

    Raises InvalidInput if columns are missing, or too many to know which ones are meant.
    """
    if target is not None and target not in frame.columns:
        raise InvalidInput("target", repr(target), f"a column of the data: {_some(list(frame.columns))}")
    names = [name for name in frame.columns if name != target]
    if original.feature_names is not None:
        if target in original.feature_names:
            raise InvalidInput(
                "target", f"{target!r}, a feature of the model", "the column with the true labels or values"
            )
        # LightGBM keeps a name with _ in place of each space.
        spaced = {name.replace(" ", "_"): name for name in names} if original.source == "LightGBM" else {}
        chosen = [name if name in names else spaced.get(name, name) for name in original.feature_names]
        absent = [name for name in chosen if name not in names]
        if absent:
            raise InvalidInput("data", f"no column {_some(absent)}", "every feature that the model was fitted with")
        return frame[chosen], [name for name in names if name not in chosen]
    if original.width is not None and len(names) != original.width:
        hint = "" if target is not None else "; name the label column with --target"
        raise InvalidInput("data", f"{len(names)} columns", f"the model's {original.width} features{hint}")
    return frame[names], []


def signature_of(original: Original, frame: Any) -> Signature:
    """The signature of the package: features, inputs and outputs; nothing may be missing in it yet.

    frame: the features as choose_features gives them. Raises InvalidInput for columns that cannot be packaged.
    """
    names = list(frame.columns)
    if len(names) > MAX_FEATURES:
        raise InvalidInput("data", f"{len(names)} features", f"at most {MAX_FEATURES}")
    texts = {name for name in names if is_text(frame[name], name)}
    numbers = "FP64" if original.takes_doubles else "FP32"
    if texts or original.selects_by_name:
        inputs = tuple(TensorSpec(name, "BYTES" if name in texts else numbers, (-1, 1)) for name in names)
        features = tuple(Feature(name, name, 0, "categorical" if name in texts else "numeric") for name in names)
    else:
        inputs = (TensorSpec(MATRIX_INPUT, numbers, (-1, len(names))),)
        features = tuple(Feature(name, MATRIX_INPUT, column) for column, name in enumerate(names))
    signature = Signature(inputs, tuple(_outputs_of(original, frame.head(_TRIED_ROWS))), features, original.classes)
    taken = {column.name for column in signature.output_columns()} | {spec.name for spec in signature.outputs}
    for name in names:
        if name in taken:
            raise InvalidInput("data", f"a feature named {name!r}", "another name, since an output has this one")
    return signature


def _outputs_of(original: Original, frame: Any) -> Iterator[TensorSpec]:
    """One per output of `Answer`, in its order; what it gives for a few rows says how wide they are."""
    for name, array in original.answer(frame).outputs.items():
        if name == "label":
            datatype = "BYTES" if array.dtype == object else "INT64"
            yield TensorSpec(name, datatype, (-1,), "label")
        elif not 0 < array.shape[1] <= MAX_FEATURES:
            raise InvalidInput("model", f"{array.shape[1]} values per row", f"1 to {MAX_FEATURES}")
        else:
            role: Role = "probabilities" if name == "probabilities" else "value"
            yield TensorSpec(name, "BYTES" if array.dtype == object else "FP32", (-1, array.shape[1]), role)


def _some(names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:5])
    return f"{listed} and {len(names) - 5} more" if len(names) > 5 else listed
