"""A model's card: read from TOML or JSON, refused by the name of its field, and kept in the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters.card import read_card
from gateway.errors import InvalidInput

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
