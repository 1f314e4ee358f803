"""The reference of a package, and values that mean the same whoever wrote them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import PackageInvalid
from gateway.models.manifest import sha256_of
from gateway.offline.reference import count_no_numbers, load_reference, values_of
from gateway.redaction import parse_setting
from tests.builders import classifier, write_bare, write_package


def test_a_reference_has_the_features_and_outputs_by_the_names_of_the_log(models: Path) -> None:
    package = write_package(models, classifier(classes=("no", "yes")), reference_rows=50)
    reference = load_reference(package)
    assert reference.rows == 50
    assert reference.names("input") == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert reference.names("output") == ("label", "probabilities.no", "probabilities.yes")
    kinds = {column.name: column.kind for column in reference.columns}
    assert (kinds["label"], kinds["probabilities.no"]) == ("categorical", "numeric")
    assert all(len(column.values) == 50 for column in reference.columns)


def test_what_is_redacted_is_left_out_since_the_log_has_nothing_to_compare_it_with(models: Path) -> None:
    card = {"stakes": "low", "redact": {"sepal_length": "hash"}}
    package = write_package(models, classifier(), reference_rows=50, card=card)
    reference = load_reference(
        package, parse_setting("iris.petal_width=drop; *.probabilities.1=bucket 0.5; x.label=drop")
    )
    assert reference.names("input") == ("sepal_width", "petal_length")
    assert reference.names("output") == ("label", "probabilities.0", "probabilities.2")
    by_tensor = load_reference(package, parse_setting("iris.input = hash; iris.probabilities = drop"))
    assert (by_tensor.names("input"), by_tensor.names("output")) == ((), ("label",))


def test_a_package_without_a_usable_reference_says_why(models: Path) -> None:
    bare = write_bare(models, classifier(version="1"))
    without = write_package(models, classifier(version="2"))
    broken = write_package(models, classifier(version="3"), reference_rows=50)
    before = sha256_of(broken / "reference.parquet")
    (broken / "reference.parquet").write_bytes(b"no parquet")
    manifest = (broken / "manifest.json").read_text()
    (broken / "manifest.json").write_text(manifest.replace(before, sha256_of(broken / "reference.parquet")))
    unreadable = write_package(models, classifier(version="4"), reference_rows=50)
    (unreadable / "manifest.json").write_text("{")
    for package, why in (
        (bare, "no manifest.json"),
        (without, "no reference.parquet"),
        (broken, "cannot read reference.parquet"),
        (unreadable, "manifest.json"),
    ):
        with pytest.raises(PackageInvalid, match=why):
            load_reference(package)


@pytest.mark.parametrize(
    ("value", "category"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        (b"1", "1"),
        (1.5, "1.5"),
        (True, "true"),
        (np.True_.item(), "true"),
        (None, None),
        (math.nan, None),
        (math.inf, "inf"),
        ("", None),
        (b"", None),
    ],
)
def test_equal_categories_are_equal_texts(value: Any, category: str | None) -> None:
    assert values_of([value], "categorical", "BYTES").tolist() == [category]


def test_what_is_no_number_counts_as_missing_and_infinity_does_not() -> None:
    found = values_of([1, None, "Infinity", "-Infinity", True, {"sha256": "x"}, "red"], "numeric", "FP64").tolist()
    assert found[0] == found[4] == 1.0
    assert found[2:4] == [math.inf, -math.inf]
    assert all(math.isnan(found[index]) for index in (1, 5, 6))


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=5))
def test_numbers_are_rounded_as_the_model_rounds_its_input(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        wanted = np.array(values, np.float64).astype(np.float32)
    assert values_of(values, "numeric", "FP32").tolist() == wanted.astype(np.float64).tolist()
    assert values_of(values, "numeric", "FP64").tolist() == values


def test_what_is_no_number_is_counted_but_missing_values_and_the_words_of_the_log_are_not() -> None:
    assert count_no_numbers([1, 2.5, None, "NaN", "Infinity", "-Infinity", float("nan")]) == 0
    assert count_no_numbers([1, "1.5", "red", [2], {"a": 1}]) == 4
