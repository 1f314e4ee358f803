"""``sluicegate samples``: look at the newest rows of the sample log, ask it by SQL, or take rows of it elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.cli import Subparsers
    from gateway.samples.search import Archive, Selection

Row = tuple[dict[str, Any], bytes]

_TAIL_ROWS = 10
_MAX_ID_CHARS = 128
_ROWS_PER_TABLE = 20_000
# What a table on the screen, or in a file, has at most.
_MAX_SHOWN_ROWS = 1000
_WIDE = 10_000
_INFINITE = {"Infinity": float("inf"), "-Infinity": float("-inf")}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("samples", help="show or export sampled predictions")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    tail = verbs.add_parser(
        "tail",
        help="show the newest rows",
        description="Show the newest sampled rows, oldest first: when, which model, version and variant answered, what "
        "the cache did, which rule of sampling wanted it if one did, the outputs or the error, the inputs. Reads the "
        "files of this machine; the gateway need not run.",
    )
    tail.add_argument(
        "-n", dest="rows", metavar="N", type=_count, help="how many rows (default: 10, or all of the predictions named)"
    )
    tail.add_argument("--json", action="store_true", help="print the lines as they stand in the log")
    tail.set_defaults(run=_tail)
    export = verbs.add_parser(
        "export",
        help="write rows to a Parquet, CSV or JSON Lines file",
        description="Write sampled rows to one file: .parquet or .csv with a column per field, input and output "
        "(inputs.NAME, outputs.NAME), or .jsonl with the lines as they are.",
    )
    export.add_argument("--out", metavar="FILE", type=Path, required=True, help="FILE.parquet, FILE.csv or FILE.jsonl")
    export.add_argument(
        "--format", choices=tuple(_WRITERS), help="what to write, where the name of FILE does not say it"
    )
    export.add_argument("--json", action="store_true", help="print JSON")
    export.set_defaults(run=_export)
    sql = verbs.add_parser(
        "sql",
        help="ask by SQL",
        description="Answer one SELECT in DuckDB's SQL over the view samples (a column per field, and per input and "
        'output: "inputs.NAME", "outputs.NAME", in double quotes), the view labels (every label as it came; row is the '
        "row of its request, null if it names none), and the view labelled: each row of samples once, with the latest "
        "of its labels by event_ts_ns (or by arrival, if that is not said): label (JSON: label ->> '$' is its text), "
        "label_ts_ns, label_delay_s, label_event_ts_ns, label_source, label_weight, how many labels came, and "
        "is_disputed if they say different things. DESCRIBE samples tells the columns. Nothing is written.",
    )
    sql.add_argument("query", metavar="QUERY", help='select version, avg("inputs.age") from samples group by version')
    sql.add_argument("--format", choices=("table", "csv", "jsonl"), default="table", help="(default: table)")
    sql.set_defaults(run=_sql)
    for verb in (tail, export, sql):
        verb.add_argument("--state", metavar="DIR", help="the gateway's state directory (default: state)")
    for verb in (tail, export):
        verb.add_argument("--model", metavar="M", help="only this model")
        verb.add_argument("--version", metavar="V", help="only this version")
        verb.add_argument("--since", metavar="TIME", type=_time_ns, help="from this time on: 2026-03-01T10:00 (UTC)")
        verb.add_argument("--until", metavar="TIME", type=_time_ns, help="up to, but not including, this time")
        verb.add_argument(
            "--prediction-id", metavar="ID", type=_identity, action="append", default=[], dest="prediction_ids",
            help="only the rows of this prediction (x-prediction-id of its reply); may be given several times",
        )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _identity(text: str) -> str:
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= _MAX_ID_CHARS):
        raise argparse.ArgumentTypeError(f"expected a prediction id of 1 to {_MAX_ID_CHARS} characters, got {text!r}")
    return text


def _time_ns(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a time like 2026-03-01T10:00, got {text!r}") from error
    return int((time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp() * 10**9)


def _log(options: argparse.Namespace) -> Path:
    """The sample log of the state directory that the options or the settings name."""
    from gateway import settings
    from gateway.cli.serve import DEFAULT_CONFIG

    config = DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    root = settings.load(config, os.environ, {"paths.state": options.state}).sample_log_path
    if not root.is_dir():
        raise GatewayError(f"there is no sample log {root}; name the gateway's state directory with --state")
    return root


def _archive() -> Archive | None:
    """What reads the Parquet files of the log; without pyarrow there is none, and where it is needed this is told."""
    try:
        from gateway.offline.parts import Parts
    except ImportError:
        return None
    return Parts()


def _selection(options: argparse.Namespace) -> Selection:
    from gateway.samples.search import Selection

    ids = frozenset(options.prediction_ids)
    return Selection(options.model, options.version, options.since, options.until, ids)


def _tell_missing(selection: Selection, found: Container[str]) -> None:
    """Say which of the predictions asked for have no row. found: ids that have."""
    for identity in sorted(selection.prediction_ids):
        if identity not in found:
            print(f"no row of prediction {identity}: not sampled, removed, or not written yet", file=sys.stderr)


# -- tail -----------------------------------------------------------------------------------------


def _tail(options: argparse.Namespace) -> int:
    from gateway.samples.search import newest

    root, selection = _log(options), _selection(options)
    by_id = bool(selection.prediction_ids)
    found = newest(root, options.rows or (sys.maxsize if by_id else _TAIL_ROWS), selection, _archive())
    _tell_missing(selection, {record["prediction_id"] for record, _line in found})
    if options.json:
        for _record, line in found:
            sys.stdout.write(line.decode())
        return 0
    if not found and not by_id:
        print(f"no such samples in {root}", file=sys.stderr)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for record, _line in found:
        print(_text(record, by_id=by_id)[:width])
    return 0


def _text(record: dict[str, Any], *, by_id: bool) -> str:
    """``2026-03-01 10:00:00.123 iris 1 stable miss | label=0 ... | sepal_length=5.1 ...``

    With ``sampled=RULE`` before the first bar if a rule wanted the row, and ``error=CODE`` for its outputs if that was
    the answer. by_id: name the prediction, too.
    """
    from gateway.samples.record import RANDOM

    time = datetime.fromtimestamp(record["ts_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    place = f"{time} {record['model']} {record['version']} {record['variant']} {record['cache']}"
    if record["sample_reason"] != RANDOM:
        place += f" sampled={record['sample_reason']}"
    if by_id:
        place += f" {record['prediction_id']} row {record['row']}"
    answer = f"error={record['error']}" if record.get("error") else _pairs(record["outputs"])
    return " | ".join((place, answer, _pairs(record["inputs"]) or "no inputs"))


def _pairs(values: dict[str, Any]) -> str:
    shown = ((name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in values.items())
    return " ".join(f"{name}={value}" for name, value in shown)


# -- export -----------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> int:
    kind = options.format or options.out.suffix.removeprefix(".")
    if kind not in _WRITERS:
        suffixes = ", ".join(f".{name}" for name in _WRITERS)
        raise GatewayError(f"--out: expected a file that ends in {suffixes}, or --format; got {options.out}")
    write = _WRITERS[kind]
    root = _log(options)
    selection = _selection(options)
    seen: set[str] = set()
    partial = options.out.with_name(f".{options.out.name}.partial")
    try:
        with _progress(root, selection) as rows:
            written = write(_noted(rows, seen) if selection.prediction_ids else rows, partial)
        partial.replace(options.out)
    except OSError as error:
        raise GatewayError(f"cannot export to {options.out}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    _tell_missing(selection, seen)
    if options.json:
        print(json.dumps({"rows": written, "file": str(options.out)}, indent=2))
    else:
        print(f"{written} rows in {options.out}")
    return 0


def _noted(rows: Iterable[Row], seen: set[str]) -> Iterator[Row]:
    """*rows* as they are; their prediction ids are in *seen* afterwards."""
    for row in rows:
        seen.add(row[0]["prediction_id"])
        yield row


@contextmanager
def _progress(root: Path, selection: Selection) -> Iterator[Iterator[Row]]:
    """The selected rows, counted on the screen while they are read if there is a screen."""
    from gateway.samples.search import select

    rows = select(root, selection, _archive())
    if not sys.stderr.isatty():
        yield rows
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} rows"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("export", total=None)

        def counted() -> Iterator[Row]:
            for row in rows:
                yield row
                progress.advance(task)

        yield counted()


def _write_jsonl(rows: Iterable[Row], path: Path) -> int:
    written = 0
    with path.open("wb") as file:
        for _record, line in rows:
            file.write(line)
            written += 1
    return written


def _write_parquet(rows: Iterable[Row], path: Path) -> int:
    table = _table(rows)
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def _write_csv(rows: Iterable[Row], path: Path) -> int:
    table = _table(rows)
    import pyarrow.csv

    pyarrow.csv.write_csv(table, path)
    return int(table.num_rows)


def _table(rows: Iterable[Row]) -> Any:
    """All rows as one Arrow table, a column per field, input and output; absent ones are null."""
    try:
        import pyarrow
    except ImportError as error:
        raise GatewayError("Parquet and CSV need pyarrow: install sluicegate[monitor]") from error
    tables = []
    rest = iter(rows)
    try:
        while some := [_flat(record) for record, _line in islice(rest, _ROWS_PER_TABLE)]:
            names = dict.fromkeys(name for row in some for name in row)
            tables.append(pyarrow.table({name: _column([row.get(name) for row in some]) for name in names}))
        return pyarrow.concat_tables(tables, promote_options="permissive") if tables else pyarrow.table({})
    except (pyarrow.ArrowTypeError, pyarrow.ArrowInvalid) as error:
        raise GatewayError(
            "these rows do not fit into one table, since a column of one name holds different kinds of values; "
            "choose one --model and --version, or export to .jsonl"
        ) from error


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": found for inner, found in value.items()}
        else:
            flat[name] = value
    return flat


def _column(values: list[Any]) -> list[Any]:
    """*values* as one Arrow type: infinities as numbers, the summary of a wide tensor and lists as text."""
    import orjson

    kinds = {type(value) for value in values}
    if dict in kinds or list in kinds:
        return [orjson.dumps(value).decode() if isinstance(value, dict | list) else value for value in values]
    if str in kinds and kinds & {int, float}:
        if all(value in _INFINITE for value in values if isinstance(value, str)):
            return [_INFINITE[value] if isinstance(value, str) else value for value in values]
        return [None if value is None else str(value) for value in values]  # two versions that mean different things
    return values


# -- sql ----------------------------------------------------------------------------------------------


def _sql(options: argparse.Namespace) -> int:
    try:
        import duckdb

        from gateway.offline.query import NotAQuery, opened
    except ImportError as error:
        raise GatewayError("SQL needs duckdb and pyarrow: install sluicegate[monitor]") from error
    root = _log(options)
    try:
        with opened(root) as desk:
            names, rows = desk.rows(options.query)
            _PRINTERS[options.format](names, rows)
    except (NotAQuery, duckdb.Error) as error:
        raise GatewayError(f"cannot answer that: {error}") from error
    except BrokenPipeError:  # whoever reads this has seen enough
        raise
    except (OSError, ValueError) as error:
        raise GatewayError(f"cannot read the sample log: {error}") from error
    return 0


def _print_table(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, names))
    for row in islice(rows, _MAX_SHOWN_ROWS):
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    if next(rows, None) is not None:
        print(f"only the first {_MAX_SHOWN_ROWS} rows are shown; --format csv gives all", file=sys.stderr)


def _print_csv(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)


def _print_jsonl(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import orjson

    for row in rows:
        plain = dict(zip(names, row, strict=True))
        sys.stdout.write(orjson.dumps(plain, default=str, option=orjson.OPT_APPEND_NEWLINE).decode())


_WRITERS: dict[str, Callable[[Iterable[Row], Path], int]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
}
_PRINTERS: dict[str, Callable[[list[str], Iterator[tuple[Any, ...]]], None]] = {
    "table": _print_table,
    "csv": _print_csv,
    "jsonl": _print_jsonl,
}
