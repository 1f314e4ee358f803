"""``sluicegate demo``: the whole walk on real data, from training to the drift report, with every answer checked."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import CannotStart

if TYPE_CHECKING:
    from rich.console import Console

    from converters.demo_models import DemoModels
    from gateway.cli import Subparsers
    from gateway.cli.demo_gateway import DemoGateway, Metrics
    from gateway.cli.demo_report import Outcome
    from gateway.cli.demo_traffic import Counts, Stream

DEFAULT_SECONDS = 20
MIN_SECONDS = 5
# Shares of the time of traffic at which the flag is flipped and the measurements shift.
FLIP_AT = 1 / 3
SHIFT_AT = 1 / 2
CANARY_PERCENT, FLIPPED_PERCENT = 10, 50
PHASES = (f"{CANARY_PERCENT} % canary", f"{FLIPPED_PERCENT} % canary", f"{FLIPPED_PERCENT} % canary, shifted rows")

_WARM_TIMEOUT_S = 30.0
_SETTLE_TIMEOUT_S = 60.0
_EXIT_FAILED = 1
_EXIT_TERMINATED = 128 + signal.SIGTERM
_STEP_S = 0.1


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the whole walk on real data",
        description="Train and convert real models, serve them with control and drift monitor, release a version as a "
        "canary, send real rows, flip a flag, shift two features half way, check every answer, and print what came of "
        "it. Leaves the gateway up until Ctrl-C unless --seconds is given.",
    )
    add = parser.add_argument
    add("--seconds", metavar="N", type=_seconds, help=f"time of traffic, at least {MIN_SECONDS}; then stop by itself")
    add("--keep-dir", metavar="DIR", type=Path, help="work in DIR and keep it (default: a temporary directory)")
    parser.set_defaults(run=_run)


def _seconds(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < MIN_SECONDS:
        raise argparse.ArgumentTypeError(f"expected whole seconds, at least {MIN_SECONDS}, got {text!r}")
    return number


def _run(options: argparse.Namespace) -> int:
    from gateway.cli.package_view import console

    screen = console()
    with _stop_on_sigterm(), _directory(options.keep_dir) as directory:
        return _play(screen, directory, options.seconds)


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as an exception would, so that the gateway is stopped and the directory removed."""

    def stop(_number: int, _frame: Any) -> None:
        raise SystemExit(_EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="sluicegate-demo-") as path:
            yield Path(path)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise CannotStart(f"{keep} is there already and not empty; name another directory with --keep-dir")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.absolute()


def _play(screen: Console, directory: Path, seconds: int | None) -> int:
    """The demo from start to end; its exit code."""
    from gateway.cli.demo_gateway import ANY_PORTS, DemoGateway, choose_ports
    from gateway.cli.demo_report import print_lines, print_outcome, problems
    from gateway.cli.demo_traffic import CANCER, DIGITS, Stream, load_subject

    built = _build(screen, directory)
    cancer = load_subject(built.models, CANCER, built.traffic[CANCER], ("1", "2"))
    digits = load_subject(built.models, DIGITS, built.traffic[DIGITS], ("1",))
    candidate = built.models / CANCER / "2"
    waiting = directory / "candidate"
    candidate.rename(waiting)  # the first version is served before the second arrives
    ports = choose_ports() if seconds is None else ANY_PORTS
    _tell(screen, "starting the gateway: 2 workers, control, drift monitor")
    with DemoGateway(directory, built.models, ports) as gateway:
        _release(screen, gateway, waiting, candidate)
        stream = Stream(gateway.data_url, (cancer, digits))
        outcome = _traffic(screen, gateway, stream, seconds or DEFAULT_SECONDS)
        print_outcome(screen, outcome)
        found = problems(outcome)
        if found:
            print(*found, "the gateway's last words:", gateway.log_tail(), sep="\n", file=sys.stderr)
            return _EXIT_FAILED
        screen.print("every prediction was right, and the drift was found")
        if seconds is not None:
            screen.print("The gateway stops now. Without --seconds it stays up, and lines such as these go on:")
        print_lines(screen, gateway, cancer, directory)
        if seconds is None:
            screen.print("Ctrl-C stops the gateway and removes its files.")
            return _wait_for_ctrl_c(gateway)
    return 0


def _tell(screen: Console, text: str) -> None:
    screen.print(text)
    sys.stdout.flush()


def _wait_for_ctrl_c(gateway: DemoGateway) -> int:
    sys.stdout.flush()
    try:
        code = gateway.wait()
    except KeyboardInterrupt:
        return 0
    print(f"the gateway ended by itself with exit code {code}; its log: {gateway.log_file}", file=sys.stderr)
    return _EXIT_FAILED


def _build(screen: Console, directory: Path) -> DemoModels:
    """Train and convert; shows how far it is, and the decision on the network's int8 variants."""
    try:
        from converters.demo_models import build
    except ImportError as error:
        raise CannotStart(f"{error.name} is missing: pip install 'sluicegate[all]' first") from error
    from gateway.cli.convert import progress_bar
    from gateway.cli.demo_traffic import DIGITS
    from gateway.cli.package_view import decision_table, quantization_text
    from gateway.models import manifest

    _tell(screen, "training and converting: breast-cancer 1 and 2, digits 1, on data sets of scikit-learn")
    started_s = time.monotonic()
    with progress_bar() as progress:
        built = build(directory, progress)
    _tell(screen, f"three packages, each compared with its original, in {time.monotonic() - started_s:.0f} s")
    raw = (built.models / DIGITS / "1" / manifest.MANIFEST_FILE).read_bytes()
    quantization = manifest.parse(raw, where=DIGITS).quantization
    screen.print(decision_table(quantization))
    _tell(screen, f"{DIGITS} 1 is {quantization_text(quantization)}")
    return built


def _release(screen: Console, gateway: DemoGateway, package: Path, place: Path) -> None:
    """Bring version 2 of breast-cancer to the gateway, and give it its first share."""
    from gateway.cli.demo_gateway import DemoFailed, until
    from gateway.cli.demo_traffic import CANCER

    package.rename(place)
    gateway.change_flag(f"{CANCER}.route", {"variants": {"canary": "2"}}, "demo: declare version 2 at weight 0")
    if not until(lambda: gateway.is_warm(CANCER, "2"), _WARM_TIMEOUT_S):
        raise DemoFailed(f"version 2 of {CANCER} was not warm within {_WARM_TIMEOUT_S:g} s")
    gateway.change_flag(f"{CANCER}.route", _split(CANARY_PERCENT), f"demo: {CANARY_PERCENT} % canary")
    _tell(screen, f"{CANCER} 2 arrived, is warm in both workers, and gets {CANARY_PERCENT} % as canary")


def _split(percent: int) -> dict[str, Any]:
    return {"targeting": {"fractional": [["canary", percent], ["stable", 100 - percent]]}}


def _traffic(screen: Console, gateway: DemoGateway, stream: Stream, seconds: int) -> Outcome:
    """Send for *seconds*, flip and shift on the way, then wait until the monitor has seen it all."""
    import asyncio

    from gateway.cli.demo_report import Outcome
    from gateway.cli.demo_traffic import CANCER, DIGITS

    before = asyncio.run(_stream(screen, gateway, stream, seconds))
    _tell(screen, "traffic ends; waiting until the drift monitor has read all samples")
    metrics = _settled(gateway, stream.counts)
    reports = {model: report for model in (CANCER, DIGITS) if (report := gateway.drift(model)) is not None}
    return Outcome(seconds, PHASES, stream.counts, metrics, before, reports)


async def _stream(screen: Console, gateway: DemoGateway, stream: Stream, seconds: int) -> dict[str, Any] | None:
    """Returns the drift report as it was just before the shift."""
    import asyncio

    from gateway.cli.demo_traffic import CANCER, SHIFT_TEXT

    started_s = time.monotonic()
    stream.phase = PHASES[0]
    with _seconds_bar(seconds) as show:

        async def pass_time(share: float) -> None:
            while (elapsed_s := time.monotonic() - started_s) < share * seconds:
                show(elapsed_s, f"{stream.phase}: {stream.counts.requests} answers, {stream.counts.failed} failures")
                await asyncio.sleep(_STEP_S)

        _tell(screen, f"real rows for {seconds} s, every answer is checked")
        sending = asyncio.create_task(stream.run())
        try:
            await pass_time(FLIP_AT)
            split, reason = _split(FLIPPED_PERCENT), f"demo: {FLIPPED_PERCENT} % canary"
            await asyncio.to_thread(gateway.change_flag, f"{CANCER}.route", split, reason)
            stream.phase = PHASES[1]
            _tell(screen, f"flag flipped under load: {FLIPPED_PERCENT} % canary")
            await pass_time(SHIFT_AT)
            before = await asyncio.to_thread(gateway.drift, CANCER)
            stream.phase, stream.shifted = PHASES[2], True
            _tell(screen, f"the measurements shift: {SHIFT_TEXT}")
            await pass_time(1.0)
        finally:
            stream.stop()
            await sending
    return before


@contextmanager
def _seconds_bar(seconds: int) -> Iterator[Any]:
    """A function that shows elapsed seconds and a text on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=seconds)

        def show(elapsed_s: float, text: str) -> None:
            bar.update(task, completed=elapsed_s, description=text)

        yield show


def _settled(gateway: DemoGateway, counts: Counts) -> Metrics:
    """The metrics once the workers have written everything and the monitor has read it; or after a while."""
    from gateway.cli.demo_gateway import until

    def all_seen() -> bool:
        metrics = gateway.metrics()
        written = metrics.total("sluicegate_samples_written_total")
        answered = metrics.total("sluicegate_requests_total", outcome="ok")
        reports = {model: gateway.drift(model) for model in counts.rows_by_model}
        return (
            written >= counts.rows
            and answered >= counts.requests
            and all(
                report is not None
                and sum(version["rows_total"] for version in report["versions"]) >= counts.rows_by_model[model]
                for model, report in reports.items()
            )
        )

    until(all_seen, _SETTLE_TIMEOUT_S)
    return gateway.metrics()
