"""What a start costs: time to the first good answer, and memory, of a worker and of the whole gateway with one model.

Run by `make bench-start`, which writes START.md. Each round starts `sluicegate serve` on an empty state directory, then
again on the same one, then kills its worker and waits for the next. The clock stops at the first prediction answered
with 200 by a client that tries all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 60.0
_PAUSE_S = 0.005  # between two tries: what a measured time may be too long by
PREDICTIONS = 200  # before memory is looked at
ROW = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}

Figures = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("START.md"))
    options = parser.parse_args()
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _package(root)
        _round(root, root / "warm-up", options.workers, defaultdict(list))  # what the disk has not read yet
        for turn in range(options.rounds):
            _round(root, root / f"state-{turn}", options.workers, figures)
            print(f"round {turn + 1} of {options.rounds}", flush=True)
    table = _table(figures)
    print(table)
    options.out.write_text(_page(table, options.rounds, options.workers))
    return 0


def _package(root: Path) -> None:
    """A scaler and a logistic regression on iris, converted."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_iris(as_frame=True)
    frame = data.data.astype("float32")
    frame.to_parquet(root / "iris.parquet")
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, data.target), root / "iris.joblib")
    source, rows, target = (str(root / name) for name in ("iris.joblib", "iris.parquet", "models"))
    named = ["--name", "iris", "--version", "1", "--data", rows, "--out", target, "--trust"]
    command = [sys.executable, "-m", "gateway", "convert", source, *named]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _round(root: Path, state: Path, workers: int, figures: Figures) -> None:
    for what in ("first start", "start on a known state"):
        with _gateway(root, state, workers) as (port, started_s, ready):
            _first_answer(port)
            figures[f"s, serve: {what}, to the first prediction"].append(time.monotonic() - started_s)
            _wait(ready.exists)
            told = json.loads(ready.read_text())
            figures[f"s, serve: {what}, to ready in all parts"].append(time.monotonic() - started_s)
            if what == "first start":
                continue
            _memory(port, told, figures)
            if workers == 1:
                figures["s, worker: its process, to the first prediction"].append(_next_worker(port, ready, told))


@contextlib.contextmanager
def _gateway(root: Path, state: Path, workers: int) -> Iterator[tuple[int, float, Path]]:
    """A gateway that is about to start: its data port, the time of its start, and its ready file."""
    port, ready = _free_port(), root / "ready.json"
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(root / "models"), "--state", str(state),
               "--host", "127.0.0.1", "--port", str(port), "--control-port", "0", "--workers", str(workers),
               "--ready-file", str(ready)]  # fmt: skip
    # As an installed package: compiled once, whatever this user has set for himself.
    settings = ["-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={root / 'compiled'}",
                "SLUICEGATE_LOG__LEVEL=critical"]  # fmt: skip
    started_s = time.monotonic()
    process = subprocess.Popen(["env", *settings, *command])
    try:
        yield port, started_s, ready
    finally:
        process.terminate()
        process.wait()


def _next_worker(port: int, ready: Path, told: dict[str, Any]) -> float:
    """Kill the worker; how long its successor lived until it answered, to about 10 ms (the kernel's clock)."""
    (old_pid,) = _pids(told, "worker")
    os.kill(old_pid, signal.SIGKILL)
    _first_answer(port)
    answered_s = time.clock_gettime(time.CLOCK_BOOTTIME)

    def new_pid() -> int | None:
        pids = _pids(json.loads(ready.read_text()), "worker")
        return pids[0] if pids and pids[0] != old_pid else None

    pid = _wait(new_pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return answered_s - int(fields[19]) / _TICKS_PER_S


def _memory(port: int, told: dict[str, Any], figures: Figures) -> None:
    """Memory after some predictions: resident, and each process's share of what several have in common."""
    for _ in range(PREDICTIONS):
        _predict(port)
    pids = {**{child["pid"]: child["role"] for child in told["children"]}, told["pid"]: "supervisor"}
    for role in sorted(set(pids.values())):
        sizes = [_mib(pid, "Rss") for pid, each in pids.items() if each == role]
        figures[f"MiB, {role}: resident"].append(statistics.mean(sizes))
    shares = {pid: _mib(pid, "Pss") for pid in pids}
    figures["MiB, worker: its share"].append(statistics.mean(shares[pid] for pid in _pids(told, "worker")))
    figures["MiB, serve: all processes, shared memory counted once"].append(sum(shares.values()))


def _pids(told: dict[str, Any], role: str) -> list[int]:
    return [child["pid"] for child in told["children"] if child["role"] == role]


def _mib(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def _first_answer(port: int) -> None:
    def answered() -> bool:
        try:
            return _predict(port) == 200
        except (OSError, http.client.HTTPException):
            return False

    _wait(answered)


def _predict(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", "/predict/iris", json.dumps({"rows": [ROW]}))
        return connection.getresponse().status
    finally:
        connection.close()


def _wait(check: Callable[[], Any]) -> Any:
    until_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until_s:
        if found := check():
            return found
        time.sleep(_PAUSE_S)
    raise TimeoutError("the gateway did not become ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _table(figures: Figures) -> str:
    lines = ["| what | unit | median | lowest | highest |", "|---|---|---|---|---|"]
    for name, values in sorted(figures.items(), key=lambda item: (item[0].startswith("s,"), item[0])):
        unit, what = name.split(", ", 1)
        digits = 2 if unit == "s" else 0
        spread = " | ".join(f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {what} | {unit} | {spread} |")
    return "\n".join(lines)


def _page(table: str, rounds: int, workers: int) -> str:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")  # fmt: skip
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"# What a start costs\n\nWritten by `make bench-start` on {day}: {cpu}, {os.cpu_count()} cores shared with "
        f"others, Python {sys.version.split()[0]}.\n{rounds} rounds; {workers} worker with one model, a scaler and a "
        f"logistic regression; memory after {PREDICTIONS} predictions.\n\n{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
