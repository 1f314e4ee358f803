"""What sampling costs a request: processor time of the event loop and of the whole worker, and what a stuck disk costs.

One gateway with one worker per model, everything else at rest; the flag of the model sets the share that is sampled,
in an order drawn anew in each round, so that all shares are measured on the same process. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from speed import asks, machine, servers, wrk
from speed.models import Model, make

CONNECTIONS = 32
NONE, SOME, ALL = "none", "1 %", "100 %"
SHARES = {NONE: 0.0, SOME: 0.01, ALL: 1.0}
FEATURES = {"forest": 30, "iris": 4}
_SETTINGS = {**servers.CACHE_OFF, "SLUICEGATE_SAMPLING__MIN_FREE_BYTES": "0"}
_WAIT_S = 20.0
_QUIET_S = 0.4  # so long without a new row, and the writer has written all; counts are told ten times a second
_DISK_BYTES = 512 * 1024 * 1024
_HICCUP_S = 0.25  # how long a slow disk stands still, and how long it then moves

Sample = dict[str, float]


@dataclass(slots=True)
class Sampled:
    """A running gateway with one worker, one model, and a share of its predictions that can be set."""

    server: servers.Server
    model: Model
    script: Path
    control: httpx.Client

    def set_share(self, share: float) -> None:
        """Set what is sampled, and wait until the worker has adopted it."""
        flag = {"state": "ENABLED", "variants": {"set": share}, "defaultVariant": "set"}
        address = f"/admin/v1/flags/{self.model.name}.sampling"
        reply = self.control.put(address, json=flag, headers={"if-match": "*"})
        if reply.status_code == 412:  # there is none yet
            reply = self.control.put(address, json=flag, headers={"if-none-match": "*"})
        reply.raise_for_status()
        revision = int(reply.headers["etag"].strip('"'))
        _until(lambda: self._revision() >= revision, "the worker has adopted the share")

    def _revision(self) -> int:
        workers = self.control.get("/admin/v1/status").json()["workers"]
        return min((int(worker["revision"]) for worker in workers), default=0)

    def load(self, seconds: int) -> Sample:
        """One run of wrk. us: of processor time per request, until the last row of the run was written."""
        ask = asks.one_row(servers.infer_path(self.model.name), self.model.rows[0], keyed=False)
        self.script.write_text(asks.script(ask, self.server.url, random.randrange(asks.DISTINCT)))
        written, dropped = self._counted()
        before = _threads_s(self.server.worker)
        seen = wrk.run(self.script, self.server.url, connections=CONNECTIONS, seconds=seconds)
        now = self.settled()
        after = _threads_s(self.server.worker)
        return {
            "loop_us": (after[self.server.worker] - before[self.server.worker]) / seen.requests * 1e6,
            "worker_us": (sum(after.values()) - sum(before.values())) / seen.requests * 1e6,
            "written": (now[0] - written) / seen.requests,
            "dropped": (now[1] - dropped) / seen.requests,
            "requests_per_s": seen.requests_per_s,
            "p50_ms": seen.p50_ms,
            "p99_ms": seen.p99_ms,
            "p999_ms": seen.p999_ms,
        }

    def settled(self) -> tuple[float, float]:
        """Rows written and samples dropped, once neither grows any more."""
        until_s, found, since_s = time.monotonic() + _WAIT_S, self._counted(), time.monotonic()
        while time.monotonic() - since_s < _QUIET_S and time.monotonic() < until_s:
            time.sleep(0.1)  # the counts are told ten times a second
            now = self._counted()
            if now != found:
                found, since_s = now, time.monotonic()
        return found

    def _counted(self) -> tuple[float, float]:
        sums = {"sluicegate_samples_written_total": 0.0, "sluicegate_samples_dropped_total": 0.0}
        for line in self.control.get("/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if name in sums:
                sums[name] += float(value)
        written, dropped = sums.values()
        return written, dropped


def _threads_s(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process, to the nanosecond; the first one's is the event loop."""
    found = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().split()[0]) / 1e9
    return found


def _until(check: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + _WAIT_S
    while not check():
        if time.monotonic() > until_s:
            raise TimeoutError(what)
        time.sleep(0.02)  # polled: the admin API tells of no change


@contextlib.contextmanager
def _running(root: Path, name: str, model: Model) -> Iterator[Sampled]:
    with servers.gateway(root, name, {model.name: model}, _SETTINGS, canary=False) as server:
        token = (root / f"{name}.state" / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "x-change-reason": "benchmark"}
        with httpx.Client(
            base_url=server.told["control"]["url"],
            headers=headers,
            timeout=10.0,
            limits=httpx.Limits(max_keepalive_connections=0),  # what idles between the runs may be closed
        ) as control:
            yield Sampled(server, model, root / f"{name}.lua", control)


# -- what it costs --------------------------------------------------------------------------------


def cost(root: Path, model: Model, rounds: int, seconds: int) -> dict[str, list[Sample]]:
    """Samples by share, one per round."""
    found: dict[str, list[Sample]] = {arm: [] for arm in SHARES}
    with _running(root, f"cost-{model.name}", model) as gateway:
        for turn in range(rounds + 1):
            for arm in random.sample(list(SHARES), len(SHARES)):
                gateway.set_share(SHARES[arm])
                sample = gateway.load(seconds if turn else 1)
                if turn:  # before the first one all is loaded for a second, uncounted
                    found[arm].append(sample)
    return found


def _cost_rows(name: str, found: dict[str, list[Sample]]) -> Iterator[str]:
    for arm, samples in found.items():
        over = [
            _spread([own[figure] / bare[figure] for own, bare in zip(samples, found[NONE], strict=True)])
            for figure in ("loop_us", "worker_us")
        ]
        yield (
            f"| {name}, {FEATURES[name]} features | {arm} | {_median(samples, 'loop_us'):.1f} "
            f"| {_median(samples, 'worker_us'):.1f} | {over[0] if arm != NONE else ''} "
            f"| {over[1] if arm != NONE else ''} | {_median(samples, 'written'):.1%} "
            f"| {_median(samples, 'dropped'):.1%} |"
        )


# -- a disk that does not move --------------------------------------------------------------------


@contextlib.contextmanager
def _disk(root: Path, log: Path) -> Iterator[None]:
    """A file system of its own under the log, which can be frozen. Needs root."""
    image = root / "disk.img"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    log.mkdir(parents=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(log)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(log)], check=True)


@contextlib.contextmanager
def _frozen(log: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "--freeze", str(log)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(log)], check=True)


@contextlib.contextmanager
def _hiccups(log: Path) -> Iterator[None]:
    """Half of the time the disk stands still."""
    stop = threading.Event()

    def freeze_and_thaw() -> None:
        while not stop.wait(_HICCUP_S):
            with _frozen(log):
                stop.wait(_HICCUP_S)

    thread = threading.Thread(target=freeze_and_thaw)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def disk(root: Path, model: Model, rounds: int, seconds: int) -> dict[str, list[Sample]]:
    """All is sampled, and the disk is well, slow or stands still; beside it, nothing is sampled."""
    log = root / f"disk-{model.name}.state" / "samples"
    calm: Callable[[], Any] = contextlib.nullcontext
    arms: dict[str, tuple[float, Callable[[], contextlib.AbstractContextManager[None]]]] = {
        "not sampled": (0.0, calm),
        "a disk that is well": (1.0, calm),
        "a disk that stands still half of the time": (1.0, partial(_hiccups, log)),
        "a disk that stands still": (1.0, partial(_frozen, log)),
    }
    found: dict[str, list[Sample]] = {arm: [] for arm in arms}
    with _disk(root, log), _running(root, f"disk-{model.name}", model) as gateway:
        for turn in range(rounds + 1):
            for arm in random.sample(list(arms), len(arms)):
                share, state = arms[arm]
                gateway.set_share(share)
                with state():
                    sample = gateway.load(seconds if turn else 1)
                gateway.settled()  # what has waited for the disk is not the next one's
                if turn:
                    found[arm].append(sample)
    return found


def _disk_rows(found: dict[str, list[Sample]]) -> Iterator[str]:
    bare = found["not sampled"]
    for arm, samples in found.items():
        rate = _spread(
            [own["requests_per_s"] / other["requests_per_s"] for own, other in zip(samples, bare, strict=True)]
        )
        waits = " | ".join(f"{_median(samples, figure):.2f}" for figure in ("p50_ms", "p99_ms", "p999_ms"))
        yield f"| {arm} | {waits} | {rate} | {_median(samples, 'dropped'):.1%} |"


# -- the tables -----------------------------------------------------------------------------------


def _median(samples: Sequence[Sample], figure: str) -> float:
    return statistics.median(sample[figure] for sample in samples)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=2, help="of each run")
    parser.add_argument("--only", choices=("cost", "disk"), help="`disk` needs root: it freezes a file system")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sampling-") as folder:
        root = Path(folder)
        models = make(root, list(FEATURES))
        told = machine.describe()
        print(f"{told['cpu']}, {told['cores']} cores, Python {told['python']}, {told['day']}, revision "
              f"{told['revision']}; {wanted.rounds} rounds of {wanted.seconds} s, {CONNECTIONS} connections."
              )  # fmt: skip
        if wanted.only != "disk":
            print("\n| model | sampled | event loop, us of CPU per request | whole worker | event loop over none "
                  "| whole worker over none | written | dropped |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
            for name, model in models.items():
                for row in _cost_rows(name, cost(root, model, wanted.rounds, wanted.seconds)):
                    print(row, flush=True)
        if wanted.only != "cost" and os.getuid() == 0:
            print("\n| all is sampled, and written to | p50 ms | p99 ms | p99.9 ms | requests/s over not sampled "
                  "| dropped |\n|---|---|---|---|---|---|")  # fmt: skip
            for row in _disk_rows(disk(root, models["iris"], wanted.rounds, wanted.seconds)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
