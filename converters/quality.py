"""How good the answers are where the true ones are known: the figures of the manifest's ``metrics``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score, root_mean_squared_error

from converters.original import as_labels
from gateway.errors import InvalidInput
from gateway.tensors import Array, Tensors


class Truth:
    """The true label or value of each row that has one.

    classes: of the model, None if it gives values. column: the target column of the data. Raises InvalidInput if it
    holds what the model can never answer.
    """

    def __init__(self, classes: Sequence[int | str] | None, column: Any) -> None:
        self.name = str(column.name)
        self._classes = classes
        present = column.dropna()
        self._rows = present.index.to_numpy()
        if not len(present):
            raise InvalidInput("target", f"column {self.name!r} without a value", "the true label of some rows")
        if self._classes is None:
            self._values: Array = self._numbers(present)
        elif isinstance(self._classes[0], str):
            self._values = as_labels(present, self._classes)  # texts, or numbers that a CSV made of them
        else:
            self._values = as_labels(self._numbers(present), self._classes)
        if self._classes is not None:
            self._check_known()

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def primary(self) -> str:
        """The figure by which variants of one model are judged: the higher the better."""
        return "r2" if self._classes is None else "accuracy"

    def known(self, chosen: Array) -> int:
        """How many of the rows that a mask over the data chooses have a truth."""
        return int(chosen[self._rows].sum())

    def measure(self, outputs: Tensors, chosen: Array | None = None) -> Mapping[str, float]:
        """The figures of a model's answers to all rows of the data, or to those that a mask chooses.

        Raises InvalidInput if it gives several values per row.
        """
        within = slice(None) if chosen is None else chosen[self._rows]
        rows, truth = self._rows[within], self._values[within]
        if self._classes is None:
            if outputs["value"].shape[1] != 1:
                several = f"{outputs['value'].shape[1]} values per row"
                raise InvalidInput("target", repr(self.name), f"none, since one column holds no truth for {several}")
            values = outputs["value"][rows].ravel()
            return {
                "r2": float(r2_score(truth, values)) if len(rows) > 1 else 0.0,
                "mean_absolute_error": float(mean_absolute_error(truth, values)),
                "root_mean_squared_error": float(root_mean_squared_error(truth, values)),
            }
        labels = outputs["label"][rows]
        figures = {"accuracy": float(accuracy_score(truth.astype(str), labels.astype(str)))}
        if "probabilities" in outputs:
            known = [label.encode() if isinstance(label, str) else label for label in self._classes]
            columns = np.array([known.index(label) for label in truth.tolist()])
            given = outputs["probabilities"][rows, columns].astype(np.float64)
            figures["log_loss"] = float(np.abs(np.log(np.clip(given, np.finfo(np.float64).eps, 1.0))).mean())
        return figures

    def _numbers(self, present: Any) -> Array:
        try:
            numbers: Array = present.to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInput("target", f"texts in column {self.name!r}", "numbers, as the model answers") from error
        return numbers

    def _check_known(self) -> None:
        assert self._classes is not None
        known = {label.encode() if isinstance(label, str) else label for label in self._classes}
        for value in self._values.tolist():
            if value not in known:
                shown = value.decode() if isinstance(value, bytes) else value
                raise InvalidInput(
                    "target",
                    f"{shown!r} in column {self.name!r}",
                    f"one of the model's classes {list(self._classes)[:10]}",
                )
