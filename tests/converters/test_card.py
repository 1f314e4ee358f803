"""A model's card: read from TOML or JSON, refused by the name of its field, and kept in the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from converters.card import read_card
from converters.convert import convert
from gateway.errors import InvalidInput
from tests.converters.bench import Rows, converted, mixed, mixed_pipeline, order

CARD = {"stakes": "high", "intended_use": "credit", "limitations": ["no companies", "no minors"], "owner": "risk-ml"}
REDACT = 'stakes = "low"\nredact = {age = "bucket 18 65", "first name" = "drop"}'


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, plain = tmp_path / "card.toml", tmp_path / "card.json"
    toml.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in CARD.items()))
    plain.write_text(json.dumps(CARD))
    assert read_card(toml) == read_card(plain) == CARD


def test_a_card_may_say_what_is_redacted(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(REDACT)
    assert read_card(tmp_path / "card.toml")["redact"] == {"age": "bucket 18 65", "first name": "drop"}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('owner = "x"', "card.stakes"),
        ('stakes = "HIGH"', "card.stakes"),
        ("stakes = true", "card.stakes"),
        ('stakes = "low"\nowners = "x"', "card.owners"),
        ('stakes = "low"\nowner = ["x"]', "card.owner"),
        ('stakes = "low"\nlimitations = ["x", 1]', "card.limitations"),
        ("stakes =", "card"),
        (REDACT.replace("drop", "keep"), "card.redact"),
        ('stakes = "low"\nredact = ["age"]', "card.redact"),
    ],
)
def test_a_wrong_card_is_refused_by_the_name_of_its_field(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_card(path)
    assert refused.value.field == field


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("[]")
    for name in ("card.json", "absent.toml"):
        with pytest.raises(InvalidInput):
            read_card(tmp_path / name)


def test_people_read_purpose_data_quality_by_slice_limits_and_origin(tmp_path: Path) -> None:
    rows = mixed()
    features = rows.features.assign(ward=["north", "south"] * (len(rows.truth) // 2) + ["east"])
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**CARD, "intended_use": "triage | not <b>alone</b>"}))
    pipeline = mixed_pipeline(unseen="error")
    ordered = order(tmp_path, pipeline.fit(rows.features, rows.truth), Rows(features, rows.truth), card=path)
    package = convert(replace(ordered, slices=("ward", "area", "size")))
    text = (package.path / "card.md").read_text()
    assert package.manifest.files["card.md"]
    for part in ("Intended use", "Limitations", "Data", "Quality", "Quantization", "Origin"):
        assert f"## {part}" in text
    assert "triage \\| not \\<b>alone\\</b>" in text, "words of others are no markup"
    assert "- no minors" in text
    assert "may be rows that the model was trained on" in text
    assert "not applicable: linear" in text
    assert package.manifest.lineage["data_sha256"] in text
    slices = {(each["column"], each["value"]): each for each in package.manifest.metrics["slices"]}
    north = features["ward"] == "north"
    score = pipeline.score(rows.features[north], rows.truth[north])
    assert slices["ward", "north"]["served"]["accuracy"] == pytest.approx(score)
    assert slices["ward", "east"]["few_rows"] is True
    quarters = [each for (column, _), each in slices.items() if column == "area"]
    assert len(quarters) == 4
    assert sum(each["rows"] for each in quarters) == len(rows.truth)
    assert "| ward | east | 1 (few) |" in text
    with pytest.raises(InvalidInput, match="slice"):
        convert(replace(ordered, slices=("street",), version="2"))
    with pytest.raises(InvalidInput, match="--target"):
        convert(replace(ordered, slices=("ward",), version="2", target=None))


def test_what_was_not_said_is_told_as_not_said(tmp_path: Path) -> None:
    rows = mixed()
    package = converted(tmp_path, mixed_pipeline(), rows, target=None)
    text = (package.path / "card.md").read_text()
    assert text.count("Not stated") == 2
    assert "Not measured: no true answers were given" in text
    usual = converted(tmp_path, mixed_pipeline(), rows, version="2").manifest.metrics["slices"]
    assert {each["column"] for each in usual} == {"truth", "size", "code"}
