"""``sluicegate convert``: turn a fitted model into a model package."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.apart import Written, convert_apart
from gateway.cli.origin import origin_of
from gateway.errors import ConversionRefused, InvalidInput

if TYPE_CHECKING:
    from converters.convert import Converted, Progress
    from gateway.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="turn a fitted model into a model package",
        description="Turn a fitted model of scikit-learn, XGBoost, LightGBM or CatBoost, a module of PyTorch, or a "
        "ready ONNX file, into a model package. The ONNX model is compared with the original on all given rows, and "
        "on rows made to find faults; a package that does not answer as the original does is not written.",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        type=Path,
        help="a .joblib or .skops file, a model file of XGBoost (.json, .ubj), LightGBM (.txt) or CatBoost (.cbm), a "
        "module (.pt) or program (.pt2) of PyTorch, or an .onnx file",
    )
    add("--name", required=True, metavar="N", help="the model's public name")
    add("--version", required=True, metavar="V", help="the version; a version never changes once it is written")
    add(
        "--data",
        metavar="ROWS",
        type=Path,
        help="rows of features, .csv or .parquet; only an .onnx file may do without",
    )
    add("--target", metavar="COL", help="the column with the true labels or values; it is no feature")
    add("--held-out", action="store_true", help="the model was not trained on these rows; the manifest will say so")
    add(
        "--slice",
        action="append",
        default=[],
        dest="slices",
        metavar="COL",
        help="tell the quality by what stands in this column too; may be given again (default: true classes, texts)",
    )
    add(
        "--quantize",
        choices=("auto", "off", "dynamic", "static", "fp16"),
        default="auto",
        help="auto: the fastest variant that passes the gate, or float32; a method by name: that one if it keeps the "
        "quality, else nothing is written (default: auto)",
    )
    add(
        "--gate",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of variants: max_flip_rate (0.002), max_metric_drop_points (0.5), min_speedup (1.2), or_min_shrinking "
        "(2.0), max_slowdown (1.05), min_rows (500)",
    )
    add(
        "--max-trees",
        metavar="N",
        type=_max_trees,
        help="keep only the first N rounds of trees; auto: the fewest that lose no more of the metric than the gate "
        "allows, with --target and --held-out",
    )
    add(
        "--card", metavar="FILE", type=Path, help="TOML or JSON: stakes (low or high), intended_use, limitations, owner"
    )
    add("--out", required=True, metavar="DIR", type=Path, help="the models directory; DIR/<name>/<version> is written")
    add(
        "--trust",
        action="store_true",
        help="loading a joblib file runs whatever code is stored in it, in a process of its own: needed to go on",
    )
    add("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    order = {
        "model": options.model,
        "name": options.name,
        "version": options.version,
        "data": options.data,
        "out": options.out,
        "target": options.target,
        "held_out": options.held_out,
        "quantize": options.quantize,
        "gate": _gate(options.gate),
        "max_trees": options.max_trees,
        "trust": options.trust,
        "card": options.card,
        "slices": options.slices,
        "origin": origin_of(options.model, options.data),
    }
    try:
        with progress_bar() as progress:
            # What a file without code makes of the runtime that reads it is not known before: it may end the process.
            apart = options.trust or options.model.suffix == ".onnx"
            converted = (convert_apart if apart else _convert_here)(order, progress)
    except ConversionRefused as error:
        return _tell_refusal(error, as_json=options.json)
    _tell(converted, options.out, as_json=options.json)
    return 0


def _max_trees(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        most = int(text)
    except ValueError:
        most = 0
    if most < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1, or auto")
    return most


def _gate(settings: list[str]) -> dict[str, float]:
    """What the user set of the gate. Raises InvalidInput for what is no number; the converters know the keys."""
    found: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            found[key] = float(value)
        except ValueError as error:
            raise InvalidInput(f"gate.{key}", repr(value), "KEY=VALUE with a number") from error
    return found


def _convert_here(order: Mapping[str, Any], progress: Progress) -> Converted:
    """Without --trust no code of others runs, nor does a runtime run a graph of theirs: it may be this process."""
    try:
        from converters.convert import Order, convert
    except ImportError as error:
        raise ConversionRefused(f"{error.name} is missing: pip install 'sluicegate[convert]' first") from error
    return convert(Order(**order), progress=progress)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress callback that draws a bar on stderr, and nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")

        def show(step: str, done: int, steps: int) -> None:
            bar.update(task, description=step, completed=done, total=steps)

        yield show


def _tell(converted: Converted | Written, out: Path, *, as_json: bool) -> None:
    manifest = converted.manifest
    if as_json:
        plain = dataclasses.asdict(manifest)
        report = {key: plain[key] for key in ("name", "version", "parity", "quantization", "metrics", "lineage")}
        print(json.dumps({"package": str(converted.path), **report}, indent=1))
        return
    from gateway.cli.package_view import console, print_report, say

    screen = console()
    print_report(screen, manifest)
    say(screen, f"wrote {converted.path}; serve it with: sluicegate serve --models {out}")


def _tell_refusal(error: ConversionRefused, *, as_json: bool) -> int:
    if as_json:
        document: dict[str, Any] = {"error": {"code": error.code, "message": str(error)}, "parity": error.report}
        print(json.dumps(document, indent=1))
    elif error.report is not None:
        from gateway.cli.package_view import console, parity_notes, parity_table, say

        screen = console()
        screen.print(parity_table(error.report))
        for note in parity_notes(error.report):
            say(screen, note)
    print(f"sluicegate: {error}", file=sys.stderr)
    return 1
