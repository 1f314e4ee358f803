"""``sluicegate drift``: what the monitor found, drifted columns first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers
    from gateway.offline.course import Courses, Looks
    from gateway.offline.drift import ColumnDrift
    from gateway.offline.report import DriftDocument, VersionReport

# Columns that did not drift are many and say little; so many are shown unless all are asked for.
_QUIET_COLUMNS = 5

_SHOWN_IDS = 2

# So many of the newest ones are told; the document and its page have all.
_DAYS, _HOURS = 2, 2

# What stands beside the metrics of a variant or a slice.
_NO_METRICS = ("rows", "classes", "value")

_NUMBERS = ("statistic", "q", "effect", "missing")
_HEADINGS = ("column", "verdict", "test", *_NUMBERS, "because")


def add_parser(subparsers: Subparsers) -> None:
    text = "show what the drift monitor found"
    parser = subparsers.add_parser("drift", help=text, description=f"{text.capitalize()}.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    report = remote.add_verb(
        verbs,
        "report",
        "show the latest report of one model, or of all",
        _report,
        more="It tells how the most recent sampled rows of each version compare with the reference in its package: "
        "drifted columns first, with test, statistic, q (the p-value after Benjamini-Hochberg) and effect (KS distance "
        "or Cramer's V, 0 to 1); where values are missing, their share in the reference and now. Then the "
        "quantiles of numbers in the reference and in the newest days and hours. Where labels came, how good the "
        "predictions were.",
    )
    report.add_argument("model", metavar="MODEL", nargs="?", help="only this model (default: all)")
    report.add_argument("--all", action="store_true", help="show every column that did not drift, too")
    report.add_argument(
        "--html", metavar="FILE", type=Path, help="write MODEL's report as a page that needs nothing else"
    )


def _report(options: argparse.Namespace) -> int:
    if options.html is not None and options.model is None:
        print("sluicegate: --html writes the report of one MODEL; name it", file=sys.stderr)
        return 2
    with remote.connect(options) as control:
        if options.model is not None:
            found = {options.model: control.get(_path(options.model))}
        else:
            models = [entry["model"] for entry in control.get("/admin/v1/models")["models"]]
            found = {model: _latest(control, model) for model in models}
    if options.html is not None:
        _write_page(_parsed(found[options.model]), options.html)
    if options.json:
        remote.print_json(found[options.model] if options.model is not None else found)
        return 0
    for model, plain in found.items():
        if plain is None:
            print(f"{model}: no report yet; the monitor has seen no sample of it (set {model}.sampling for more)")
        else:
            _print(_parsed(plain), show_all=options.all)
    return 0


def _path(model: str) -> str:
    return f"/admin/v1/models/{quote(model, safe='')}/drift"


def _latest(control: remote.Remote, model: str) -> Any:
    """The drift document of *model* as plain JSON; None if there is none yet."""
    try:
        return control.get(_path(model))
    except remote.RemoteFailed as error:
        if error.code == "unknown_model":
            return None
        raise


def _parsed(plain: Any) -> DriftDocument:
    from gateway.offline.report import parse

    try:
        return parse(plain)
    except (ValueError, AttributeError) as error:
        raise remote.RemoteFailed(f"the control plane's drift report cannot be read: {error}") from error


def _write_page(document: DriftDocument, path: Path) -> None:
    from gateway.offline.page import page

    try:
        path.write_text(page(document), "utf-8")
    except OSError as error:
        raise remote.RemoteFailed(f"cannot write {path}: {error.strerror}") from error


def _print(document: DriftDocument, *, show_all: bool) -> None:
    for version in document.versions:
        print(f"{document.model} {version.version}: {version.status} ({version.reason})")
        print(f"  {_window(version)}; written {_time(document.written_at)}")
        for line in _alarms(document, version):
            print(f"  {line}")
        if (beside := version.beside) is not None:
            print(f"  beside version {beside.baseline}, {beside.window_rows} rows: {beside.status} ({beside.reason})")
        told = (("rows", version.outside), ("answers", version.outside_outputs))
        for what, outside in told:
            if outside is None:
                continue
            ids = f"; look at {', '.join(outside.prediction_ids[:_SHOWN_IDS])}" if outside.rows else ""
            more = "more than" if outside.is_above else "within"
            print(
                f"  {what} unlike all of the reference: {outside.share:.1%}, {more} the bound {outside.bound:.1%} "
                f"(expected {outside.expected:.1%}){ids}"
            )
        others = [column for column in version.columns if column.verdict != "drifted"]
        others.sort(key=lambda column: -(column.effect or 0.0))
        shown = others if show_all else others[:_QUIET_COLUMNS]
        if any(column.test for column in version.columns):
            _print_columns((*version.drifted, *shown))
            if len(shown) < len(others):
                print(f"  and {len(others) - len(shown)} more that did not drift; --all shows them")
        if version.courses is not None:
            _print_courses(version.courses, [column.name for column in (*version.drifted, *shown)])
        labels = document.performance or {}
        for line in (
            *_performance(labels, version.version),
            *_decay(labels, version.version),
            *_detectors(labels, version.version),
        ):
            print(f"  {line}")
        print()


def _alarms(document: DriftDocument, version: VersionReport) -> Iterator[str]:
    """Every alarm of a version, each with the command that shows its rows."""
    from gateway.offline import alarmed

    model, performance = document.model, document.performance
    beside = version.beside
    columns = [(alarm.name, alarm) for alarm in version.alarms]
    columns += [(f"{alarm.name} against {beside.baseline}", alarm) for alarm in beside.alarms] if beside else []
    for name, alarm in columns:
        yield f"ALARM {name}: drifted in {alarm.drifted_windows} of {alarm.judged_windows} windows; its rows:"
        yield f"  {alarmed.command(model, version.version, alarm) or 'none are named'}"
    told = alarmed.of_version(performance, version.version)
    for metric in alarmed.decayed(performance, version.version):
        yield f"ALARM {metric['name']} by labels: {_against(metric, told)}; its rows:"
        yield f"  {alarmed.command_of_metric(model, version.version, told)}"
    for found in alarmed.changed(performance, version.version):
        yield f"ALARM {found['name']} by labels: {_change(found['changes'][-1])}; rows up to it:"
        yield f"  {alarmed.command_of_detector(model, version.version, found)}"


def _print_columns(columns: Sequence[ColumnDrift]) -> None:
    """One row per column, narrow enough for 80 characters; missing values get a place only if there are some."""
    hidden = set() if any(column.missing_ref or column.missing_cur for column in columns) else {"missing"}
    shown = [name for name in _HEADINGS if name not in hidden]
    styles: dict[str, dict[str, Any]] = {name: {"justify": "right", "no_wrap": True} for name in _NUMBERS}
    styles |= {"column": {"overflow": "fold"}, "verdict": {"no_wrap": True}, "test": {"no_wrap": True}}
    cells = [_row(column) for column in columns]
    remote.print_table(
        "", {name: styles.get(name, {}) for name in shown}, [tuple(row[n] for n in shown) for row in cells]
    )


def _print_courses(courses: Courses, names: Sequence[str]) -> None:
    """Quantiles of numbers in the reference, and below them those of the newest days and hours."""
    known = {column.name: column for column in courses.columns if column.kind == "numeric"}
    rows: list[tuple[str, ...]] = []
    for column in (known[name] for name in names if name in known):
        rows.append((column.name, "reference", "", *_look(column.reference, 0)))
        for span, place in list(zip(courses.days, range(len(courses.days)), strict=True))[-_DAYS:]:
            rows.append(("", _time(span.from_s)[5:10], str(span.rows), *_look(column.days, place)))
        for span, place in list(zip(courses.hours, range(len(courses.hours)), strict=True))[-_HOURS:]:
            rows.append(("", f"{_time(span.from_s)[5:13]} h", str(span.rows), *_look(column.hours, place)))
    if rows:
        numbers: dict[str, dict[str, Any]] = {
            name: {"justify": "right", "no_wrap": True} for name in ("rows", "5 %", "median", "95 %", "missing")
        }
        remote.print_table("", {"column": {"overflow": "fold"}, "UTC": {"no_wrap": True}, **numbers}, rows)


def _look(looks: Looks, place: int) -> tuple[str, str, str, str]:
    missing = looks.missing[place]
    low, median, high = (_number(each[place]) for each in (looks.low, looks.median, looks.high))
    return low, median, high, "" if missing is None else f"{missing:.1%}"


def _performance(section: Mapping[str, Any], version: str) -> Iterator[str]:
    """What labels say of a version: one line per variant, and one per slice."""
    for variant in section.get("variants", ()):
        if variant["version"] != version:
            continue
        rows, labelled = variant["over"] + variant["waiting"], variant["labelled"] + variant["waiting_labelled"]
        told = f"labels of {variant['variant']}: {labelled} of {rows} rows"
        if variant["coverage"] is not None:
            told += f" ({variant['coverage']:.1%} of those that no longer wait)"
        if variant["delay_s"] is not None:
            told += f", after {variant['delay_s']['p50']:.0f} s (median)"
        yield told
        if variant["unusable"]:
            names = ", ".join(f"{one['class']!r} ({one['rows']})" for one in variant.get("unknown_classes", ()))
            classes = f"; classes that the model does not have: {names}" if names else ""
            yield f"  {variant['unusable']} labels say nothing of what it predicts, and do not count{classes}"
        if variant["scores"] is None:
            if variant["reason"]:
                yield f"  performance is not known: {variant['reason']}"
            continue
        yield f"  {_scores(variant['scores'])}"
        if (calibration := variant.get("calibration")) is not None:
            yield f"  {_calibration(calibration)}"
        for each in variant["slices"]:
            yield f"  {section['slice_feature']} = {each['value']}: {_scores(each)}"


def _decay(section: Mapping[str, Any], version: str) -> Iterator[str]:
    """How the windows of labelled rows compare with the first ones."""
    for told in section.get("versions", ()):
        for metric in told.get("metrics", ()) if told["version"] == version else ():
            yield f"{metric['name']} by labels: {metric['verdict']} ({_against(metric, told)})"


def _against(metric: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    value, mean, bound = (_number(metric[name]) for name in ("value", "mean", "bound"))
    against = f"at first {mean}, bound {bound}" if bound else f"at first {mean}, no bound yet"
    return f"{value} in a window of {told['window_rows']} rows; {against}"


def _detectors(section: Mapping[str, Any], version: str) -> Iterator[str]:
    """What detectors on the errors of single rows have found."""
    for told in section.get("versions", ()):
        for each in told.get("detectors", ()) if told["version"] == version else ():
            because = f"; {each['reason']}" if each["reason"] else ""
            line = (
                f"{each['name']} by labels: {each['verdict']} ({each['found']} changes in {each['rows']} rows{because})"
            )
            if each["changes"]:
                line += f"; {_change(each['changes'][-1])}"
            yield line


def _change(found: Mapping[str, Any]) -> str:
    at = _time(found["ts_ns"] / 1e9)
    return f"mean error {_number(found['before'])} -> {_number(found['after'])} at {at}"


def _scores(scores: Mapping[str, Any]) -> str:
    told = [f"{name} {_number(value)}" for name, value in scores.items() if name not in _NO_METRICS]
    return f"{', '.join(each for each in told if not each.endswith(' '))} ({scores['rows']} rows)"


def _calibration(told: Mapping[str, Any]) -> str:
    worst = max(told["bins"], key=lambda each: each["weight"] * abs(each["predicted"] - each["observed"]))
    chance = f"chance of {told['of']}" if told["of"] else "highest chance"
    return (
        f"calibration error {told['ece']:.3g} (about {told['by_chance']:.2g} by chance alone); furthest off: "
        f"{chance} {worst['predicted']:.3g}, true {worst['observed']:.3g} ({worst['rows']} rows)"
    )


def _window(version: VersionReport) -> str:
    rows = f"window: {version.window_rows} rows"
    if version.window_rows:
        rows += f", {_time(version.window_from_ns / 1e9)} to {_time(version.window_to_ns / 1e9)}"
    return f"{rows}; reference: {version.reference_rows} rows"


def _row(column: ColumnDrift) -> dict[str, str]:
    return {
        "column": column.name,
        "verdict": column.verdict,
        "test": column.test,
        "statistic": _number(column.statistic),
        "q": _number(column.q),
        "effect": _number(column.effect),
        "missing": f"{column.missing_ref:.1%} -> {column.missing_cur:.1%}",
        "because": column.reason,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
