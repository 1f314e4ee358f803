"""The card of a model: what it is for, what it cannot do, whose it is, and how much depends on it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import InvalidInput
from gateway.redaction import parse_card

STAKES = ("low", "high")
_TEXTS = ("intended_use", "limitations", "owner")


def read_card(path: Path) -> Mapping[str, Any]:
    """The card in a TOML file, or a JSON file if its name ends so. Raises InvalidInput naming the field.

    Fields: stakes, "low" or "high"; intended_use and owner, text; limitations, text or a list of texts; redact, an
    object of names and what becomes of their values in the sample log. stakes must be there: what needs approval later
    must not depend on a field that was forgotten.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("card", f"{path}: {error}", "a TOML or JSON file in UTF-8") from error
    try:
        card = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise InvalidInput("card", f"{path}: {error}", "valid TOML, or JSON in a file that ends in .json") from error
    if not isinstance(card, dict):
        raise InvalidInput("card", f"a JSON {type(card).__name__}", "an object")
    for name in card.keys() - {"stakes", "redact", *_TEXTS}:
        raise InvalidInput(f"card.{name}", "an unknown field", f"only stakes, redact, {', '.join(_TEXTS)}")
    if card.get("stakes") not in STAKES:
        raise InvalidInput("card.stakes", repr(card.get("stakes")), " or ".join(STAKES))
    for name in _TEXTS:
        value = card.get(name, "")
        texts = value if name == "limitations" and isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in texts):
            raise InvalidInput(f"card.{name}", repr(value)[:80], "text" + (" or texts" * (name == "limitations")))
    try:
        parse_card(card.get("redact"))
    except ValueError as error:
        raise InvalidInput("card.redact", str(error)[:200], "names and rules: drop, hash or bucket 18 65") from error
    return card
