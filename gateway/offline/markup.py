"""The small parts that the drift page is made of: text that is nothing else, numbers, times, badges, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from gateway.offline.drift import CHI_SQUARE, FISHER, KS, MISSING, RANKS

# Test -> what people call it.
TESTS = {
    KS: "Kolmogorov-Smirnov",
    RANKS: "Mann-Whitney",
    CHI_SQUARE: "chi-square",
    FISHER: "Fisher's exact test",
    MISSING: "share missing",
}
# Metric -> what people call it. What else is in the numbers is shown under its own name.
METRICS = {
    "auc": "AUC",
    "brier": "Brier",
    "ece": "ECE",
    "f1": "F1",
    "log_loss": "log loss",
    "mae": "mean absolute error",
    "rmse": "RMSE",
}


def text(value: object) -> str:
    """*value* as HTML text that cannot be anything else: names come from whoever made the model.

    What does not print, controls and marks that turn the direction of writing among it, is shown as U+FFFD.
    """
    return escape("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value)))


def short(value: object, limit: int) -> str:
    """*value* cut to so many characters, as `text`."""
    plain = str(value)
    return text(plain if len(plain) <= limit else plain[: limit - 1] + "…")


def badge(verdict: str) -> str:
    known = verdict if verdict in ("drifted", "stable") else "soft"
    return f'<span class="badge {known}">{text(verdict)}</span>'


def number(value: float | None, digits: int = 3) -> str:
    """So many digits of a value, and no exponent where people would write none.

    >>> [number(value) for value in (None, 0.02718, 7.0, 74_699.0, 1_234_567.0, 1e-05)]
    ['-', '0.0272', '7', '74,700', '1.23e6', '1e-5']
    """
    if value is None:
        return "-"
    short_form = f"{value:.{digits}g}"
    if "e" not in short_form:
        return short_form
    if 1 <= abs(value) < 1e6:
        return f"{float(short_form):,.0f}"
    mantissa, exponent = short_form.split("e")
    return f"{mantissa}e{int(exponent)}"


def chance(value: float | None) -> str:
    """A p or q; one that is too small for a number is not 0.

    >>> [chance(value) for value in (None, 0.0123, 0.0)]
    ['-', '0.012', 'under 1e-300']
    """
    return "under 1e-300" if value is not None and value < 1e-300 else number(value, 2)


def figure(name: str, value: str) -> str:
    """A named number that stays on one line: 1e-25 must not break at its sign."""
    return f'<span class="figure">{text(name)} {text(value)}</span>'


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def length(value_s: float | None) -> str:
    """A time span, in the largest unit that leaves two digits.

    >>> [length(value) for value in (0.25, 90.0, 7200.0, 300_000.0)]
    ['250 ms', '90 s', '120 min', '83.3 h']
    """
    if value_s is None:
        return "-"
    for unit, seconds in (("h", 3600.0), ("min", 60.0)):
        if value_s >= 60 * seconds or (unit == "min" and value_s >= 2 * seconds):
            return f"{value_s / seconds:.3g} {unit}"
    return f"{value_s:.3g} s" if value_s >= 1 or value_s <= 0 else f"{1000 * value_s:.3g} ms"


def time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%m-%d %H:%M:%S")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where the screen is narrow. rows: cells that are HTML; the first one is a name."""
    head = "".join(f"<th>{text(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in map(tuple, rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
