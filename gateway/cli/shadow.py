"""``sluicegate shadow``: what a shadow version would have answered, beside what was answered."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_COLUMNS = ("output", "kind", "rows", "flips", "flip rate", "95 % interval", "p50", "p90", "p99", "max")


def add_parser(subparsers: Subparsers) -> None:
    text = "compare a shadow version with the one that answers"
    parser = subparsers.add_parser("shadow", help=text, description=f"{text.capitalize()}.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    report = remote.add_verb(
        verbs,
        "report",
        "show how the answers of a shadow version differ from those that went out",
        _report,
        more="Over all workers: rows with another label, and quantiles of the largest change in a row, right within "
        "2.5 %; what failed, what was not run, and what a run costs. A shadow is released by `rollout start MODEL "
        "VERSION --strategy shadow`, or by hand: `flags set MODEL.shadow 0.1` copies a tenth of the requests to the "
        "version that `flags set MODEL.route --declare shadow=VERSION` has named.",
    )
    report.add_argument("model", metavar="MODEL", help="the model's name")


def _report(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        found = control.get(f"/admin/v1/models/{quote(options.model, safe='')}/shadow")
    if options.json:
        remote.print_json(found)
        return 0
    if found["version"] is not None and not found["note"]:
        print(f"{found['model']}: version {found['version']} runs {found['rate'] * 100:.4g} % of what is answered")
    for slot, state in found["workers"].items():
        if state not in ("on", "off"):
            print(f"  worker {slot}: {state}")
    if found["note"]:
        print(f"{found['model']}: {found['note']}")
    for one in found["comparisons"]:
        _print(one)
    if not found["comparisons"]:
        print("no pairs yet")
    return 0


def _print(one: Mapping[str, Any]) -> None:
    since = datetime.fromtimestamp(one["since"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    print()
    if one["outputs"]:
        styles: dict[str, dict[str, Any]] = {name: {"justify": "right", "no_wrap": True} for name in _COLUMNS[2:]}
        columns = {name: styles.get(name, {}) for name in _COLUMNS}
        title = f"version {one['version']} beside version {one['base']}, since {since}, {one['workers']} worker(s)"
        remote.print_table(title, columns, [_row(name, output) for name, output in one["outputs"].items()])
    print(one["sentence"])


def _row(name: str, output: Mapping[str, Any]) -> tuple[str, ...]:
    flips = rate = interval = ""
    if "flips" in output and output["rows"]:
        flips, rate = str(output["flips"]), _percent(output["flip_rate"])
        interval = f"{_percent(output['flip_rate_low'])} to {_percent(output['flip_rate_high'])}"
    change = output.get("change", {})
    numbers = ("" if change.get(q) is None else f"{change[q]:.3g}" for q in ("p50", "p90", "p99", "max"))
    return name, output["kind"], str(output["rows"]), flips, rate, interval, *numbers


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
