"""What a load test calls a wrong answer, how it reads answers and rows, and how it counts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from answers import Answer, Checker, WrongAnswer, native_answers, oip_answers, same
from served import Served, Unusable, classes_of, discover
from tally import CHANGE_FLAG, Counts

from tests.builders import classifier, write_mixed_package, write_package
from tests.live import LiveGateway

RIGHT: Answer = {"label": (1,), "probabilities": (0.25, 0.75)}


def headers(**changes: str) -> dict[str, str]:
    told = {"x-model-version": "1", "x-model-variant": "stable", "x-flag-revision": "7", "x-prediction-id": "abc"}
    return told | {f"x-{name.replace('_', '-')}": value for name, value in changes.items()}


def checker() -> Checker:
    return Checker(lambda _model, _version: frozenset({0, 1}))


def test_a_right_answer_passes_again_and_again_in_whatever_variant() -> None:
    under_test = checker()
    under_test.check("iris", [3], "ann", headers(), [RIGHT])
    under_test.check("iris", [3, 3], "ann", headers(), [RIGHT, RIGHT])
    under_test.check("iris", [3], "ann", headers(model_variant="canary", flag_revision="8"), [RIGHT])
    under_test.check("iris", [3], None, headers(model_variant="canary"), [RIGHT])
    assert under_test.variants["iris"] == {"stable": 2, "canary": 2}


@pytest.mark.parametrize(
    ("told", "answers", "complaint"),
    [
        (headers(model_version=""), [RIGHT], "no x-model-version header"),
        (headers(flag_revision=""), [RIGHT], "no x-flag-revision header"),
        (headers(), [RIGHT, RIGHT], "another number of predictions"),
        (headers(), [], "another number of predictions"),
        (headers(), [{"label": (1,), "probabilities": (0.25, 0.7)}], "do not sum to 1"),
        (headers(), [{"label": (1,), "probabilities": (float("nan"), 1.0)}], "do not sum to 1"),
        (headers(), [{"label": (1,), "probabilities": (None, 1.0)}], "do not sum to 1"),
        (headers(), [{"label": (2,), "probabilities": (0.25, 0.75)}], "none of the classes"),
        (headers(), [{"label": "one", "probabilities": (0.25, 0.75)}], "none of the classes"),
        (headers(), [{"label": (0,), "probabilities": (0.75, 0.25)}], "two answers of one version"),
        (headers(model_variant="canary"), [RIGHT], "two variants for one targeting key"),
    ],
)
def test_a_wrong_answer_is_named(told: dict[str, str], answers: list[Answer], complaint: str) -> None:
    under_test = checker()
    under_test.check("iris", [3], "ann", headers(), [RIGHT])
    with pytest.raises(WrongAnswer, match=complaint):
        under_test.check("iris", [3], "ann", told, answers)


def test_answers_are_the_same_within_a_tolerance() -> None:
    assert same({"value": (100_000.0,)}, {"value": (100_000.5,)})
    assert same({"value": (float("nan"),)}, {"value": (float("nan"),)})
    assert same({"value": (None,)}, {"value": (None,)})
    assert not same({"value": (1.0,)}, {"value": (1.001,)})
    assert not same({"value": (1.0,)}, {"value": (None,)})
    assert not same({"value": (1.0,)}, {"other": (1.0,)})
    assert not same({"value": (1.0,)}, {"value": (1.0, 1.0)})
    assert not same({"label": "a"}, {"label": "b"})


def test_counts_keep_predictions_apart_from_flag_changes() -> None:
    counts = Counts()
    for latency_ms in range(1, 101):
        counts.on_request(name="named iris", response_time=float(latency_ms))
    counts.on_request(name="named iris", response_time=500.0, exception=WrongAnswer("status 503"))
    counts.on_request(name=CHANGE_FLAG, response_time=9000.0)
    counts.note("status 503", "overloaded")
    counts.note("status 503", "a second example is not kept")
    found = counts.figures()
    predictions = found["predictions"]
    assert (predictions["requests"], predictions["failures"], predictions["max_ms"]) == (101, 1, 500.0)
    assert predictions["p50_ms"] == pytest.approx(51, rel=0.01)
    assert predictions["p99_ms"] == pytest.approx(100, rel=0.01)
    assert [row["name"] for row in found["requests"]] == [CHANGE_FLAG, "named iris"]
    assert found["errors"] == [{"name": "named iris", "message": "status 503", "count": 1, "example": "overloaded"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("served")
    models = root / "models"
    write_package(models, classifier("iris", "1", classes=("setosa", "virginica")))
    write_mixed_package(models)
    with LiveGateway(models, root / "state") as live:
        yield live


def ask_both(gateway: LiveGateway, model: Served, picked: list[int]) -> tuple[list[Answer], list[Answer]]:
    """The same rows by names and as binary tensors."""
    named = gateway.data.post(f"/predict/{model.name}", json={"rows": [model.rows[row] for row in picked]})
    body, told = model.binary(picked)
    binary = gateway.data.post(f"/v2/models/{model.name}/infer", content=body, headers=told)
    assert (named.status_code, binary.status_code) == (200, 200), named.text + binary.text
    length = int(binary.headers["inference-header-content-length"])
    return native_answers(named.content), oip_answers(binary.content, length)


def test_both_protocols_give_answers_that_are_the_same(gateway: LiveGateway) -> None:
    for model in discover(gateway.data_url, (), {}):
        named, binary = ask_both(gateway, model, [0, 5, 5])
        assert len(named) == len(binary) == 3
        assert all(same(one, other) for one, other in zip(named, binary, strict=True))
        assert same(named[1], named[2])
        assert not same(named[0], named[1])


def test_rows_come_from_files_of_three_kinds(gateway: LiveGateway, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"colour": "red", "size": 1.5, "price": 9.0}, {"colour": "blue", "size": 2.0, "price": 8.0}]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for kind in ("csv", "json", "parquet"):
        (model,) = discover(gateway.data_url, ("paint",), {"": tmp_path / f"rows.{kind}"})
        assert list(model.rows) == [{"size": 1.5, "colour": "red"}, {"size": 2.0, "colour": "blue"}]
        named, _binary = ask_both(gateway, model, [0, 1])
        assert [same(answer, {"value": (value,)}) for answer, value in zip(named, (31.5, 12.0), strict=True)] == [
            True,
            True,
        ]


def test_what_cannot_be_asked_is_said(gateway: LiveGateway, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("size\n1\n")
    with pytest.raises(Unusable, match="there is no column 'colour'"):
        discover(gateway.data_url, ("paint",), {"paint": tmp_path / "rows.csv"})
    (tmp_path / "rows.csv").write_text("size,colour\n")
    with pytest.raises(Unusable, match="there are no rows"):
        discover(gateway.data_url, ("paint",), {"paint": tmp_path / "rows.csv"})
    with pytest.raises(Unusable, match="does not serve rose; it serves iris, paint"):
        discover(gateway.data_url, ("rose",), {})
    with pytest.raises(Unusable, match="Connection refused"):
        discover("http://127.0.0.1:1", (), {})


def test_classes_are_asked_of_the_version(gateway: LiveGateway) -> None:
    assert classes_of(gateway.data_url, "iris", "1") == {"setosa", "virginica"}
    assert classes_of(gateway.data_url, "paint", "1") == frozenset()
    assert classes_of(gateway.data_url, "iris", "9") == frozenset()
