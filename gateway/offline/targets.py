"""What a version predicts, as labels know it: where its answer stands in a row of the sample log, and what is equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

from gateway.errors import PackageInvalid
from gateway.models.manifest import MANIFEST_FILE, NAME_PATTERN, VERSION_PATTERN, Manifest, parse
from gateway.offline.reference import category_of
from gateway.redaction import Rules, rules_for
from gateway.tensors import Signature

# A class by its text, or a number.
Answer: TypeAlias = str | float

_RETRY_S = 10.0  # a package whose manifest cannot be read is looked at again


class UnknownClass(ValueError):
    """A label names a class that the model does not have. name: that class as a text."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the model has no class {name!r}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Target:
    """The output that labels are about.

    output: its name, for labels that name it. column: of the predicted label or number in the rows; empty if only
    probabilities are given. classes: all that the model can answer, as texts, in the order of the probabilities'
    columns *scores*, which are empty if the model gives none; empty if the package does not say.
    """

    output: str
    column: str
    is_classes: bool
    classes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()

    def without(self, hidden: Container[str]) -> Target | str:
        """What is left of it if the columns *hidden* are redacted in the log; why nothing, if that is so."""
        if any(name in hidden for name in self.scores):
            return (
                replace(self, scores=()).without(hidden) if self.column else f"{self.output!r} is redacted in the log"
            )
        return f"{self.column!r} is redacted in the log" if self.column in hidden else self

    def predicted(self, outputs: Mapping[str, Any]) -> tuple[Answer, list[float] | None]:
        """What a row of the log predicts, and its probabilities. Raises ValueError, TypeError or KeyError."""
        if not self.is_classes:
            return _number(outputs[self.column]), None
        scores: list[float] | None = None
        if self.scores:
            scores = [_number(outputs[name]) for name in self.scores]
        if self.column:
            return text_of(outputs[self.column]), scores
        if scores is None:
            raise ValueError("neither a label nor probabilities")
        return self.classes[scores.index(max(scores))], scores

    @property
    def columns(self) -> tuple[str, ...]:
        """The outputs that `predicted` looks at."""
        return (self.column, *self.scores) if self.column else self.scores

    def all_predicted(self, outputs: Sequence[Sequence[Any]]) -> Iterator[tuple[Answer, list[float] | None] | None]:
        """`predicted` of many rows, by typed columns: those of *columns*, in order; None for one that says nothing."""
        if not self.is_classes:
            for value in outputs[0]:
                yield None if value is None else (float(value), None)
            return
        scores: Iterable[tuple[Any, ...]] = repeat((), len(outputs[0]))
        if self.scores:
            scores = zip(*outputs[bool(self.column) :], strict=True)
        if not self.column:
            for row in scores:
                yield None if None in row else (self.classes[row.index(max(row))], list(row))
            return
        texts = {value: category_of(value) for value in set(outputs[0])}
        for value, row in zip(outputs[0], scores, strict=True):
            text = texts[value]
            yield None if text is None or None in row else (text, list(row) if self.scores else None)

    def truth(self, label: Any) -> Answer:
        """What a label says of this target.

        Raises UnknownClass if it is a class that the model does not have, ValueError or TypeError if it says nothing of
        the target at all.
        """
        if isinstance(label, dict):
            if self.output not in label:
                raise ValueError(f"the label does not name {self.output!r}")
            label = label[self.output]
        if not self.is_classes:
            if isinstance(label, bool):
                raise TypeError("true and false are no numbers")
            return _number(label)
        text = text_of(label)
        if isinstance(label, bool) and text not in self.classes and "1" in self.classes:
            return "1" if label else "0"
        # It would be one more class in every mean over classes, with a recall of 0: a slip of the pen would look like
        # a model that got worse.
        if self.classes and text not in self.classes:
            raise UnknownClass(text)
        return text


def target_of(signature: Signature) -> Target | None:
    """What labels of this model are about: its first label, else its probabilities, else its first number."""
    label = next((spec for spec in signature.outputs if spec.role == "label"), None)
    probabilities = next((spec for spec in signature.outputs if spec.role == "probabilities"), None)
    named: dict[str, list[str]] = {}
    for column in signature.output_columns():
        named.setdefault(column.output, []).append(column.name)
    if label is not None or probabilities is not None:
        classes = tuple(map(text_of, signature.classes or ()))
        if label is not None and "INT" in label.datatype and not all(map(_is_whole, classes)):
            classes = ()  # names beside an output of whole numbers: labels may be either
        scores = tuple(named.get(probabilities.name, ())) if probabilities is not None else ()
        if len(scores) != len(classes) or len(classes) < 2:
            scores = ()
        if label is None and not scores:
            return None
        output = label if label is not None else probabilities
        assert output is not None
        return Target(output.name, label.name if label is not None else "", True, classes, scores)
    for name, columns in named.items():
        spec = signature.output(name)
        if len(columns) == 1 and spec is not None and spec.datatype not in ("BYTES", "BOOL"):
            return Target(name, columns[0], False)
    return None


class Targets:
    """The targets of the packages in a models directory, each read once. Used by one thread."""

    def __init__(self, models: Path, *, clock: Callable[[], float], redact: Mapping[str, Rules] | None = None) -> None:
        """redact: what the settings hide in the log, by model, besides the packages' cards."""
        self._models = models
        self._redact = redact or {}
        self._clock = clock
        self._known: dict[tuple[str, str, str], Target | str] = {}  # by model, version, digest
        self._retry_at: dict[tuple[str, str, str], float] = {}

    def find(self, model: str, version: str, digest: str) -> Target | str:
        """What labels of a package are about, or why that is not known. Raises ValueError if these are no names."""
        key = (model, version, digest)
        known = self._known.get(key)
        if known is None or (isinstance(known, str) and self._clock() >= self._retry_at[key]):
            if not (NAME_PATTERN.fullmatch(model) and VERSION_PATTERN.fullmatch(version)):
                raise ValueError("neither may lead out of the directories that they name files in")
            try:
                raw = (self._models / model / version / MANIFEST_FILE).read_bytes()
                known = self._target(parse(raw, where=MANIFEST_FILE))
            except PackageInvalid as error:
                known = str(error)
            except FileNotFoundError:
                known = f"the package has no {MANIFEST_FILE}"
            except OSError as error:
                known = f"cannot read {MANIFEST_FILE}: {error.strerror}"
            if isinstance(known, str):
                self._retry_at[key] = self._clock() + _RETRY_S
            self._known[key] = known
        return known

    def _target(self, manifest: Manifest) -> Target | str:
        target = target_of(manifest.signature)
        if target is None:
            return "no output that a label could be about"
        # A hashed prediction equals no label: it would look as if the model were always wrong.
        return target.without(rules_for(manifest.name, manifest.redact, self._redact, manifest.signature.parts()))


def text_of(value: Any) -> str:
    """A class as a text that is equal wherever it comes from (1, 1.0 and "1"). Raises ValueError if it is missing."""
    text = category_of(value)
    if text is None:
        raise ValueError("missing")
    return text


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number
