"""What a prediction costs beside an empty ASGI app on bare uvicorn: interleaved rounds on one core, wrk on another.

Run by `make bench`, which writes RESULTS.md. Everything is on in the gateway: a 90/10 canary over two loaded versions,
sticky keys, validation, deadlines, metrics, 1 % sampling. A ratio above 1 means cheaper, or faster, than the empty app.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

SERVER_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 32
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WARM_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Work:
    """One kind of request to one server, and what was measured of it, a figure per round."""

    name: str
    pid: int
    url: str
    script: Path
    requests_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed; on Debian: apt-get install wrk", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        works = _prepare(Path(scratch), stack)
        for turn in range(options.rounds):
            for work in works:
                _measure(work, options.seconds)
            print(f"round {turn + 1} of {options.rounds}", flush=True)
    table = _table(works)
    print(table)
    options.out.write_text(_page(table, options.rounds, options.seconds))
    return 0


# -- servers ----------------------------------------------------------------------------------------


def _prepare(root: Path, stack: contextlib.ExitStack) -> list[Work]:
    features = _packages(root)
    bare_port = _free_port()
    bare = stack.enter_context(_process(
        [sys.executable, "-m", "uvicorn", "bare_app:app", "--app-dir", str(Path(__file__).parent), "--port",
         str(bare_port), "--no-access-log", "--log-level", "warning"]))  # fmt: skip
    _await_answer(f"http://127.0.0.1:{bare_port}/")
    uncached = stack.enter_context(_gateway(root, "uncached", {"SLUICEGATE_CACHE__MAX_BYTES": "0"}))
    cached = stack.enter_context(_gateway(root, "cached", {}))
    rows = {model: _script(root, model, count, unique=True) for model, count in features.items()}
    hot = _script(root, "iris", features["iris"], unique=False)
    iris, forest = "/v2/models/iris/infer", "/v2/models/forest/infer"
    return [
        Work("empty ASGI app on bare uvicorn", bare.pid, f"http://127.0.0.1:{bare_port}/", hot),
        Work("iris pipeline, cache off", uncached[0], uncached[1] + iris, rows["iris"]),
        Work("iris pipeline, hot row from the cache", cached[0], cached[1] + iris, hot),
        Work("iris pipeline, unique rows, cache on", cached[0], cached[1] + iris, rows["iris"]),
        Work("random forest of 100 trees, cache off", uncached[0], uncached[1] + forest, rows["forest"]),
    ]


def _packages(root: Path) -> dict[str, int]:
    """Two versions of an iris pipeline and of a random forest, converted; returns the number of features of each."""
    import joblib
    from sklearn.datasets import load_breast_cancer, load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found: dict[str, int] = {}
    for model, load in (("iris", load_iris), ("forest", load_breast_cancer)):
        data = load(as_frame=True)
        frame = data.data.astype("float32")
        frame.to_parquet(root / f"{model}.parquet")
        for version in (1, 2):
            estimator = (
                make_pipeline(StandardScaler(), LogisticRegression(C=float(version), max_iter=1000))
                if model == "iris"
                else RandomForestClassifier(100, random_state=version)
            )
            joblib.dump(estimator.fit(frame, data.target), root / f"{model}.joblib")
            source, rows, target = root / f"{model}.joblib", root / f"{model}.parquet", root / "models"
            named = ["--name", model, "--version", str(version), "--data", str(rows), "--out", str(target)]
            _run("convert", str(source), *named, "--trust", "--quantize", "off")
        found[model] = frame.shape[1]
    return found


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "gateway", *arguments], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process on the server's core, ended at the end."""
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    process = subprocess.Popen(["taskset", "-c", str(SERVER_CORE), "env", *settings, *command])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _gateway(root: Path, name: str, environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """A gateway with one worker and a 90/10 canary on both models; gives the worker's pid and the data plane's URL."""
    ready = root / f"{name}.json"
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(root / "models"), "--state", str(root / name),
               "--host", "127.0.0.1", "--port", "0", "--control-port", "0", "--ready-file", str(ready)]  # fmt: skip
    with _process(command, {**environment, "SLUICEGATE_LOG__LEVEL": "error"}):
        _wait(ready.exists)
        told = json.loads(ready.read_text())
        token = (root / name / "admin.token").read_text().strip()
        control = httpx.Client(base_url=told["control"]["url"], headers={"authorization": f"Bearer {token}"})
        for model in ("iris", "forest"):
            _patch(control, model, {"variants": {"canary": "1"}})  # 2 is the highest version, so it is stable
            split = {"targeting": {"fractional": [["canary", 10], ["stable", 90]]}}
            _wait(lambda model=model, split=split: _patch(control, model, split))
        (pid,) = [child["pid"] for child in told["children"] if child["role"] == "worker"]
        yield pid, told["data"]["url"]


def _patch(control: httpx.Client, model: str, patch: dict[str, Any]) -> bool:
    headers = {"if-match": "*", "x-change-reason": "benchmark"}
    reply = control.patch(f"/admin/v1/flags/{model}.route", headers=headers, json=patch)
    return reply.status_code == 200


def _wait(check: Any) -> None:
    until_s = time.monotonic() + _WARM_TIMEOUT_S
    while not check():
        if time.monotonic() > until_s:
            raise TimeoutError("a server did not become ready")
        time.sleep(0.05)


def _await_answer(url: str) -> None:
    def answers() -> bool:
        try:
            return httpx.get(url).status_code == 200
        except httpx.TransportError:
            return False

    _wait(answers)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- load -------------------------------------------------------------------------------------------


def _script(root: Path, model: str, features: int, *, unique: bool) -> Path:
    """A wrk script: one-row requests with one of 1,000 targeting keys; each row new, or always the same."""
    path = root / f"{model}-{'unique' if unique else 'hot'}.lua"
    # Whole numbers below 2**24 differ as 32-bit floats too, and each run of wrk starts at others.
    first = "n % 16000000" if unique else "5.1"
    others = ", ".join(f"{1 + index % 7}.5" for index in range(features - 1))
    path.write_text(
        'wrk.method = "POST"\nlocal n = os.time() * 131071 % 16000000\nrequest = function()\n  n = n + 1\n'
        '  wrk.headers["x-targeting-key"] = "user-" .. (n % 1000)\n'
        '  return wrk.format(nil, nil, nil, \'{"inputs":[{"name":"input","shape":[1,'
        f'{features}],"datatype":"FP32","data":[\' .. {first} .. \', {others}]}}]}}\')\nend\n'
    )
    return path


def _measure(work: Work, seconds: int) -> None:
    """One run of wrk; raises if an answer was no success."""
    before_s = _cpu_s(work.pid)
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--latency", "-s",
               str(work.script), work.url]  # fmt: skip
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"{work.name}: not every request succeeded:\n{told}")
    count = int(_found(r"(\d+) requests in", told))
    work.cpu_us.append((_cpu_s(work.pid) - before_s) / count * 1e6)
    work.requests_per_s.append(float(_found(r"Requests/sec: +([\d.]+)", told)))
    work.p50_ms.append(_ms(_found(r"50% +(\S+)", told)))
    work.p99_ms.append(_ms(_found(r"99% +(\S+)", told)))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk did not print {pattern!r}:\n{text}")
    return match.group(1)


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]  # wrk's own format
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def _cpu_s(pid: int) -> float:
    """Processor time of a process, user and system, from its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


# -- the page ---------------------------------------------------------------------------------------


def _table(works: list[Work]) -> str:
    yardstick = works[0]
    lines = [
        "| work | requests/s over the yardstick | CPU per request: yardstick over this | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for work in works:
        rates = [own / base for own, base in zip(work.requests_per_s, yardstick.requests_per_s, strict=True)]
        costs = [base / own for own, base in zip(work.cpu_us, yardstick.cpu_us, strict=True)]
        lines.append(
            f"| {work.name} | {_spread(rates)} | {_spread(costs)} | {statistics.median(work.p50_ms):.2f} | "
            f"{statistics.median(work.p99_ms):.2f} |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _page(table: str, rounds: int, seconds: int) -> str:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")  # fmt: skip
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"# Results\n\nWritten by `make bench` on {day}: {cpu}, {os.cpu_count()} cores shared with others, "
        f"Python {sys.version.split()[0]}.\nMedians of {rounds} interleaved rounds of {seconds} s (lowest to highest); "
        f"wrk with {CONNECTIONS} connections on one core, the servers on the other, one-row Open Inference Protocol\n"
        "requests. In the gateway everything is on: a 90/10 canary over two loaded versions with sticky keys, "
        f"validation,\ndeadlines, metrics, 1 % sampling.\n\n{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
