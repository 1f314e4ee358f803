"""The results as they are kept: a JSON file with a line per measurement."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "results.json"
_INNERMOST = re.compile(r"\{\n([^{}\[\]]*)\n *\}")
_DIGITS = 6


def read(folder: Path) -> dict[str, Any]:
    """Results by part; none if nothing was measured yet."""
    path = folder / FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Keep results, numbers to six digits."""
    text = json.dumps(_short(results), indent=1)
    lines = _INNERMOST.sub(lambda found: "{" + " ".join(found[1].split()) + "}", text)
    (folder / FILE).write_text(lines + "\n")


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
