"""What the whitelisted JsonLogic operators mean: JavaScript's loose comparisons on JSON values, and flagd's additions.

Total functions: whatever comes, they answer and never raise. Checked against flagd-core, from which they depart only
where it leans on Python's idea of a boolean (``True == 1`` under ``===``, ``"True"`` in ``cat``).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_NAN = math.nan
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
# A header may bring anything, and Python refuses to read a number of some thousand digits.
_MAX_SEMVER_CHARACTERS = 256
_INFINITIES = ("inf", "-inf", "+inf", "infinity", "-infinity", "+infinity")
# (major, minor, patch) and the prerelease's parts; a release sorts after its prereleases.
_Semver = tuple[tuple[int, int, int], tuple[Any, ...]]


def truthy(value: Any) -> bool:
    """JavaScript's truth, except that an empty list is false (as JsonLogic says)."""
    if isinstance(value, float):
        return value == value and value != 0.0
    return bool(value)


def loose_equal(a: Any, b: Any) -> bool:
    """``==`` of JavaScript."""
    if type(a) is type(b):
        return not isinstance(a, list) and bool(a == b)
    if isinstance(a, int | float) or isinstance(b, int | float):
        return to_number(a) == to_number(b)  # null is 0 here, as in flagd-core; JavaScript would say unequal
    if isinstance(a, str) and isinstance(b, list):
        return a == to_text(b)
    if isinstance(b, str) and isinstance(a, list):
        return b == to_text(a)
    return False


def strict_equal(a: Any, b: Any) -> bool:
    """``===`` of JavaScript: equal only within one type; numbers are one type."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return not isinstance(a, list) and bool(a == b)


def contains(needle: Any, haystack: Any) -> bool:
    """``in``: an element of a list, or a part of a text."""
    if isinstance(haystack, list):
        return needle in haystack
    return isinstance(haystack, str) and to_text(needle) in haystack


def comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """JavaScript's ``<`` and its kin from Python's: by number as soon as one side is no text."""

    def compared(a: Any, b: Any) -> bool:
        if isinstance(a, int | float) or isinstance(b, int | float):
            return compare(to_number(a), to_number(b))
        if isinstance(a, str) or isinstance(b, str):
            return compare(to_text(a), to_text(b))
        return compare(to_number(a), to_number(b))

    return compared


ORDERINGS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": comparison(operator.lt),
    "<=": comparison(operator.le),
    ">": comparison(operator.gt),
    ">=": comparison(operator.ge),
}


def to_number(value: Any) -> int | float:
    """A value as a number; NaN where there is none."""
    if isinstance(value, int | float):
        return value
    if value is None:
        return 0
    if isinstance(value, list):
        if len(value) > 1:
            return _NAN
        return to_number(value[0]) if value else 0
    if not isinstance(value, str) or value.strip().lower() in _INFINITIES:
        return _NAN
    try:
        return float(value)
    except ValueError:
        return _NAN


def to_text(value: Any) -> str:
    """A value as text."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    return ",".join(to_text(item) for item in value) if isinstance(value, list) else str(value)


def starts_with(text: Any, part: Any) -> bool | None:
    return text.startswith(part) if isinstance(text, str) and isinstance(part, str) else None


def ends_with(text: Any, part: Any) -> bool | None:
    return text.endswith(part) if isinstance(text, str) and isinstance(part, str) else None


SEMVER_TESTS: Mapping[str, Callable[[_Semver, _Semver], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "^": lambda a, b: a[0][0] == b[0][0],
    "~": lambda a, b: a[0][:2] == b[0][:2],
}


def is_semver(text: str) -> bool:
    """Whether *text* is a semantic version to the letter, as rules must write them; headers may be laxer."""
    return _SEMVER.fullmatch(text) is not None and len(text) <= _MAX_SEMVER_CHARACTERS


def semver(value: Any) -> _Semver | None:
    """A semantic version (``v1.2`` counts as 1.2.0) in a form that sorts as such; None if it is none."""
    text = str(value)
    if len(text) > _MAX_SEMVER_CHARACTERS:
        return None
    if text[:1] in ("v", "V"):
        text = text[1:]
    numeric = text.split("-")[0].split("+")[0]
    if numeric.count(".") < 2:
        text = numeric + ".0" * (2 - numeric.count(".")) + text[len(numeric) :]
    match = _SEMVER.fullmatch(text)
    if match is None:
        return None
    major, minor, patch, before = match.groups()
    numbers = (int(major), int(minor), int(patch))
    if before is None:
        return numbers, ((2,),)
    # Numbers sort before words; fewer parts before more.
    parts = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in before.split("."))
    return numbers, ((1,), *parts)
