"""``sluicegate loadtest``: many users ask a gateway, every answer is checked, and figures are held against promises."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.cli import Subparsers

# Short name -> user class of the locustfile.
USERS = {
    "named": "NamedRowsUser",
    "binary": "BinaryUser",
    "hot": "HotKeysUser",
    "two": "TwoModelsUser",
    "operator": "OperatorUser",
}
SHAPES = ("steady", "ramp", "spike")

# What --expect knows -> whether the figure must be at most the number (else at least).
FIGURES: Mapping[str, bool] = {
    **{f"{name}_ms": True for name in ("mean", "p50", "p90", "p95", "p99", "max")},
    "errors": True,
    "error_rate": True,
    "rps": False,
    "requests": False,
}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")
_EXIT_FAILED = 1
# A run ends by itself; this much more than its time, and something hangs.
_GRACE_S = 60.0
_STOP_TIMEOUT_S = 10  # what requests in flight get when the time is over
_POLL_S = 0.2
_LOG_LINES_SHOWN = 15
_WIDTH = 120  # of what is printed into a file


class LoadTestFailed(GatewayError):
    """The load test could not be run to its end."""

    code = "load_test_failed"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One promise: ``p99_ms=50`` or ``rps=100``."""

    figure: str
    limit: float

    def broken(self, report: Mapping[str, Any]) -> str | None:
        """What is wrong, or None if the promise is kept."""
        value = _figure(report, self.figure)
        if value is None:
            return f"{self.figure}: expected {self._wanted}, but there was no request"
        kept = value <= self.limit if FIGURES[self.figure] else value >= self.limit
        return None if kept else f"{self.figure}: expected {self._wanted}, got {value:.4g}"

    @property
    def _wanted(self) -> str:
        return f"at {'most' if FIGURES[self.figure] else 'least'} {self.limit:g}"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "loadtest",
        help="load a gateway and check its answers",
        description="Load a gateway with many users (Locust, without its web page), check every answer, and print a "
        "table. Exit code 1 if an expectation fails; any failed request or wrong answer fails unless --expect allows "
        "it.",
    )
    add = parser.add_argument
    add("url", metavar="URL", type=_url, help="data plane, as http://127.0.0.1:8080")
    add("--users", metavar="N", type=_count, default=10, help="users at the same time (default: 10)")
    add("--spawn-rate", metavar="R", type=_positive, default=None, help="users started per second (default: all)")
    add("--time", metavar="T", type=duration_s, default=30, help="run time, as 30s, 5m or 1h30m (default: 30s)")
    add("--shape", choices=SHAPES, default="steady", help="steady, ramp up, or a spike in the middle")
    add(
        "--classes",
        metavar="C,...",
        type=_classes,
        default=("named", "binary", "hot"),
        help=f"kinds of users, of {', '.join(USERS)} (default: named,binary,hot)",
    )
    add("--models", metavar="M,...", default="", help="models to ask (default: all that are served)")
    add(
        "--rows",
        metavar="[M=]FILE",
        action="append",
        default=[],
        help="rows to send to model M, or to all: csv, parquet or json (default: made up from the inputs' datatypes)",
    )
    add("--rate-per-user", metavar="R", type=_positive, help="requests per second of one user (default: no limit)")
    add("--control-url", metavar="URL", help="control plane for the operator (default: $SLUICEGATE_URL)")
    add("--token-file", metavar="FILE", type=Path, help="its token (default: $SLUICEGATE_TOKEN)")
    add("--flip-every", metavar="S", type=_positive, default=2.0, help="seconds between the operator's changes")
    add("--expect", metavar="F=X,...", type=expectations, default=(), help=f"promises, of {', '.join(FIGURES)}")
    add("--html", metavar="FILE", type=Path, help="write Locust's HTML report")
    add("--csv", metavar="FILE", type=Path, help="write the figures per request name as CSV")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.set_defaults(run=lambda options: _run(parser, options))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import importlib.util

    control = _control(options)
    if "operator" in options.classes and not all(control.values()):
        parser.error("the operator needs --control-url and --token-file, or SLUICEGATE_URL and SLUICEGATE_TOKEN")
    if importlib.util.find_spec("locust") is None:
        raise LoadTestFailed("Locust is not installed; it comes with: pip install 'sluicegate[loadtest]'")
    with tempfile.TemporaryDirectory(prefix="sluicegate-loadtest-") as scratch:
        report = _measure(options, control, Path(scratch))
        if options.csv is not None:
            _write_csv(options.csv, report)
    promises = _with_defaults(options.expect)
    broken = [wrong for promise in promises if (wrong := promise.broken(report))]
    if options.json:
        print(json.dumps({**report, "broken": broken}, indent=1))
    else:
        _print_table(report, promises, broken)
    for wrong in broken:
        print(f"expectation failed: {wrong}", file=sys.stderr)
    return _EXIT_FAILED if broken else 0


# -- arguments -----------------------------------------------------------------------------------------------


def duration_s(text: str) -> int:
    """``90``, ``30s``, ``5m``, ``1h30m`` as seconds. Raises ArgumentTypeError."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 5m or 1h30m, got {text!r}")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total < 1:
        raise argparse.ArgumentTypeError(f"expected at least one second, got {text!r}")
    return total


def expectations(text: str) -> tuple[Expectation, ...]:
    """``p99_ms=50,errors=0`` as expectations. Raises ArgumentTypeError."""
    found = []
    for part in text.split(","):
        figure, _, limit = part.strip().partition("=")
        if figure not in FIGURES:
            raise argparse.ArgumentTypeError(f"{figure!r} is none of {', '.join(FIGURES)}")
        try:
            number = float(limit)
        except ValueError:
            number = math.nan
        if not number >= 0:
            raise argparse.ArgumentTypeError(f"{figure}: expected a number of at least 0, got {limit!r}")
        found.append(Expectation(figure, number))
    return tuple(found)


def _with_defaults(promises: Sequence[Expectation]) -> list[Expectation]:
    """No error, and at least one request, unless something else is asked of them."""
    named = {promise.figure for promise in promises}
    added = [Expectation("errors", 0)] if not {"errors", "error_rate"} & named else []
    added += [Expectation("requests", 1)] if not {"requests", "rps"} & named else []
    return [*promises, *added]


def _classes(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in USERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(USERS)}")
    if names == ("operator",):
        raise argparse.ArgumentTypeError("an operator alone loads nothing; name other users too")
    return names


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected the data plane as http://127.0.0.1:8080, got {text!r}")
    return text


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


# -- the run -----------------------------------------------------------------------------------------------


def _control(options: argparse.Namespace) -> dict[str, str]:
    """Where the control plane is and its token, as the environment of Locust, which nobody else can read."""
    token = os.environ.get("SLUICEGATE_TOKEN", "")
    if options.token_file is not None:
        try:
            token = options.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LoadTestFailed(f"cannot read the token file {options.token_file}: {error}") from error
    return {"SLUICEGATE_URL": options.control_url or os.environ.get("SLUICEGATE_URL", ""), "SLUICEGATE_TOKEN": token}


def _measure(options: argparse.Namespace, control: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Run Locust in a process of its own (it replaces the sockets and threads of its whole process)."""
    report_file, log_file = scratch / "report.json", scratch / "locust.log"
    command = _command(options, report_file)
    environment = {**os.environ, **control}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            with _progress(options.time) as show:
                _wait(process, report_file, options.time, show)
        finally:
            _end(process)
    report = _read_report(report_file)
    if process.returncode != 0 or not report.get("finished"):
        raise LoadTestFailed(f"Locust ended with exit code {process.returncode}:\n{_tail(log_file)}")
    return report


def _command(options: argparse.Namespace, report_file: Path) -> list[str]:
    classes = [USERS[name] for name in options.classes]
    command = [
        *(sys.executable, "-P", "-m", "locust", "--locustfile", str(_locustfile()), *classes),
        *("--headless", "--only-summary", "--loglevel", "WARNING"),
        *("--exit-code-on-error", "0", "--stop-timeout", str(_STOP_TIMEOUT_S)),
        *("--host", options.url.rstrip("/"), "--users", str(options.users)),
        *("--spawn-rate", f"{options.spawn_rate or options.users:g}", "--run-time", f"{options.time}s"),
        *("--shape", options.shape, "--report", str(report_file), "--flip-every", f"{options.flip_every:g}"),
        *("--models", options.models, "--rate-per-user", f"{options.rate_per_user or 0:g}"),
    ]
    for text in options.rows:
        model, equals, path = text.partition("=")
        if not equals:
            model, path = "", text
        command += ["--rows", f"{model}={Path(path).absolute()}"]
    if options.html is not None:
        command += ["--html", str(options.html.absolute())]
    return command


def _locustfile() -> Path:
    """Beside this file in an installed package, in its own folder in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "benchmarks", here.parent.parent / "benchmarks"):
        if (folder / "locustfile.py").exists():
            return folder / "locustfile.py"
    raise LoadTestFailed("this installation has no locustfile.py; install sluicegate again")


def _wait(process: subprocess.Popen[bytes], report_file: Path, run_time_s: float, show: Any) -> None:
    deadline_s = time.monotonic() + run_time_s + _GRACE_S
    while process.poll() is None:
        if time.monotonic() > deadline_s:
            raise LoadTestFailed(f"Locust did not end within {run_time_s + _GRACE_S:g} s")
        show(_read_report(report_file))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever happened: no process is left. The first signal lets the operator put the flags back."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(2 * _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return report


def _tail(log_file: Path) -> str:
    lines = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LOG_LINES_SHOWN:])


# -- what is shown -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(run_time_s: float) -> Iterator[Any]:
    """A function that shows how far the run is, given its report; it shows nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("load test", total=run_time_s, told="starting")

        def show(report: Mapping[str, Any]) -> None:
            if report:
                now = report["predictions"]
                told = f"{report['users']} users, {now['rps']:.0f} requests/s, {report['failures']} failures"
                progress.update(task, completed=report["elapsed_s"], told=told)

        yield show


def _figure(report: Mapping[str, Any], name: str) -> float | None:
    """One figure that --expect knows, over all predictions; errors count the operator's too."""
    predictions = report["predictions"]
    if name == "errors":
        return float(report["failures"])
    if name == "error_rate":
        return predictions["failures"] / predictions["requests"] if predictions["requests"] else None
    value = predictions[name]
    return None if value is None else float(value)


_COLUMNS = ("requests", "failures", "rps", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
_SHOWN = {
    "requests": "requests",
    "failures": "failed",
    "rps": "per s",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "max_ms": "max",
}


def _print_table(report: Mapping[str, Any], promises: Sequence[Expectation], broken: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(title=f"{report['elapsed_s']:.1f} s of load, latencies in milliseconds", title_justify="left")
    table.add_column("user and model", no_wrap=True)
    for heading in _SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["requests"]:
        table.add_row(row["name"], *(_shown(name, row[name]) for name in _SHOWN))
    table.add_section()
    table.add_row("all predictions", *(_shown(name, report["predictions"][name]) for name in _SHOWN), style="bold")
    console.print(table)
    for model, variants in report["variants"].items():
        total = sum(variants.values())
        shares = ", ".join(f"{name} {count / total:.1%}" for name, count in sorted(variants.items()))
        console.print(f"{model}: {shares}", highlight=False)
    for error in report["errors"]:
        console.print(f"{error['count']} x {error['name']}: {error['message']}", style="red", highlight=False)
        if error["example"]:
            console.print(f"    for example {error['example'][:300]}", highlight=False, markup=False)
    if not broken:
        kept = ", ".join(f"{promise.figure}={promise.limit:g}" for promise in promises)
        console.print(f"all expectations met: {kept}", style="green", highlight=False)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.{0 if name == 'rps' else 2}f}"


def _write_csv(path: Path, report: Mapping[str, Any]) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", *_COLUMNS))
        for row in (*report["requests"], {"name": "all predictions", **report["predictions"]}):
            writer.writerow((row["name"], *("" if row[name] is None else row[name] for name in _COLUMNS)))
