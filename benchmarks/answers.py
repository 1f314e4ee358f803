"""Reads the answers of a gateway and holds them against its promises, and against its own earlier answers."""

from __future__ import annotations

import collections
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from served import DTYPES

# One row's answer: output name -> its numbers, or its text.
Answer = dict[str, tuple[float | None, ...] | str]

TOLERANCE = 1e-5  # between two answers of one version to one row, absolute or relative to large values
SUM_TOLERANCE = 1e-3
REVISIONS_KEPT = 64
HEADERS = ("x-model-version", "x-model-variant", "x-flag-revision", "x-prediction-id")


class WrongAnswer(Exception):
    """The gateway answered, but not as promised. The text has no values in it, so that equal faults count together."""

    def __init__(self, what: str, seen: object = "") -> None:
        super().__init__(what)
        self.seen = seen


def native_answers(content: bytes) -> list[Answer]:
    """The predictions of a native reply, row by row."""
    found = []
    for prediction in json.loads(content)["predictions"]:
        answer: Answer = {}
        for name, value in prediction.items():
            answer[name] = tuple(value.values()) if isinstance(value, dict) else _plain(value)
        found.append(answer)
    return found


def oip_answers(content: bytes, head_bytes: int) -> list[Answer]:
    """The outputs of an Open Inference Protocol reply with binary tensors, row by row."""
    outputs = json.loads(content[:head_bytes])["outputs"]
    answers: list[Answer] = [{} for _ in range(outputs[0]["shape"][0])]
    start = head_bytes
    for output in outputs:
        size, shape = output["parameters"]["binary_data_size"], output["shape"]
        blob = content[start : start + size]
        start += size
        values = _read_texts(blob) if output["datatype"] == "BYTES" else np.frombuffer(blob, DTYPES[output["datatype"]])
        if len(values) != math.prod(shape) or shape[0] != len(answers):
            raise WrongAnswer("an output whose values do not fit its shape", output)
        width = len(values) // len(answers)
        for index, answer in enumerate(answers):
            own = values[index * width : (index + 1) * width]
            answer[output["name"]] = own[0] if isinstance(own[0], str) else tuple(float(value) for value in own)
    if start != len(content):
        raise WrongAnswer("bytes after the last output")
    return answers


def _read_texts(blob: bytes) -> list[str]:
    texts, position = [], 0
    while position < len(blob):
        (size,) = struct.unpack_from("<I", blob, position)
        texts.append(blob[position + 4 : position + 4 + size].decode())
        position += 4 + size
    return texts


def _plain(value: Any) -> tuple[float | None, ...] | str:
    if isinstance(value, str):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


class Checker:
    """Remembers what was answered and holds later answers against it.

    classes_of: the labels that a version of a model knows; none if it is no classifier, or if nobody can say any more.
    """

    def __init__(self, classes_of: Callable[[str, str], frozenset[Any]]) -> None:
        self._classes_of = classes_of
        self._classes: dict[tuple[str, str], frozenset[Any]] = {}
        self._answers: dict[tuple[str, str, int], Answer] = {}
        self._variants: collections.OrderedDict[tuple[str, str], dict[str, str]] = collections.OrderedDict()
        self.variants: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def check(
        self, model: str, picked: Sequence[int], key: str | None, headers: Mapping[str, str], answers: list[Answer]
    ) -> None:
        """Raise WrongAnswer unless this reply fits the rows that were asked and all earlier replies.

        picked: the numbers of the rows. key: the targeting key that was sent, or None. headers: of the reply, their
        names in lower case.
        """
        for name in HEADERS:
            if not headers.get(name):
                raise WrongAnswer(f"no {name} header")
        version, variant = headers["x-model-version"], headers["x-model-variant"]
        self.variants[model][variant] += 1
        if len(answers) != len(picked):
            raise WrongAnswer("another number of predictions than rows", (len(answers), len(picked)))
        if key is not None and self._first_variant(model, headers["x-flag-revision"], key, variant) != variant:
            raise WrongAnswer("two variants for one targeting key at one flag revision", (key, dict(headers)))
        for row, answer in zip(picked, answers, strict=True):
            self._check_classes(model, version, answer)
            before = self._answers.setdefault((model, version, row), answer)
            if not same(before, answer):
                raise WrongAnswer("two answers of one version to one row", (row, before, answer))

    def _first_variant(self, model: str, revision: str, key: str, variant: str) -> str:
        of_key = self._variants.setdefault((model, revision), {})
        if len(self._variants) > REVISIONS_KEPT:
            self._variants.popitem(last=False)
        return of_key.setdefault(key, variant)

    def _check_classes(self, model: str, version: str, answer: Answer) -> None:
        probabilities, label = answer.get("probabilities"), answer.get("label")
        if isinstance(probabilities, tuple):
            numbers = [value for value in probabilities if value is not None]
            if len(numbers) < len(probabilities) or not abs(math.fsum(numbers) - 1.0) <= SUM_TOLERANCE:
                raise WrongAnswer("probabilities that do not sum to 1", answer)
        if label is not None:
            if (model, version) not in self._classes:
                self._classes[model, version] = self._classes_of(model, version)
            known = self._classes[model, version]
            if known and (label if isinstance(label, str) else label[0]) not in known:
                raise WrongAnswer("a label that is none of the classes", answer)


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same, numbers within TOLERANCE."""
    return one.keys() == other.keys() and all(_close(values, other[name]) for name, values in one.items())


def _close(one: tuple[float | None, ...] | str, other: tuple[float | None, ...] | str) -> bool:
    if one == other:
        return True
    if isinstance(one, str) or isinstance(other, str) or len(one) != len(other):
        return False
    return all(
        a == b or (a is not None and b is not None and _close_numbers(a, b)) for a, b in zip(one, other, strict=True)
    )


def _close_numbers(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
