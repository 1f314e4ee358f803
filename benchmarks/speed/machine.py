"""The machine that is measured on: pinned processes, and the processor time and the memory that they take."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")

SERVER_CORE, LOAD_CORE = 0, 1
ROOT = Path(__file__).parents[2]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_END_TIMEOUT_S = 15.0
_LOOK_S = 0.5
_IDLE_SHARE = 0.06  # of a core: what several idle gateways take, looking at their flags


class NotReady(Exception):
    """A server ended, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What some processes hold. rss: pages that they share count for each of them; pss: shared out among them.

    anonymous: of rss, what is no file's: unlike pss it does not rise when others that have the same files open end.
    """

    rss_bytes: int
    pss_bytes: int
    anonymous_bytes: int


def tree(pid: int) -> list[int]:
    """A process and all that descend from it, those included whose fathers handed them on within the tree."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(path)[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of processes from their starts, user and system; those that are gone count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(Path(f"/proc/{pid}/stat"))
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def wait_idle(find: Callable[[], Sequence[int]], timeout_s: float) -> None:
    """Wait until the processes that *find* gives do nothing worth speaking of, or the time is over.

    Some work is done once and not per request: the monitor of a gateway loads its libraries with the first sample.
    """
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        before_s = cpu_s(find())
        time.sleep(_LOOK_S)
        if cpu_s(find()) - before_s < _IDLE_SHARE * _LOOK_S:
            return


def core_busy_s(core: int) -> float:
    """Processor time that anybody used of one core since the machine's start."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, *rest = (int(field) for field in line.split()[1:])
    return (user + nice + system + sum(rest[:3])) / _TICKS_PER_S  # interrupts, and what the host took away


def started_at_s(pid: int) -> float:
    """When a process began, on the clock of now_s(), to 10 ms."""
    return int(_stat(Path(f"/proc/{pid}/stat"))[19]) / _TICKS_PER_S


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return _stat(Path(f"/proc/{pid}/stat"))[0] in "ZX"
    except OSError:
        return True


def now_s() -> float:
    """Seconds since the machine's start: the clock of started_at_s()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def memory(pids: Iterable[int]) -> Memory:
    """Resident and proportional memory of processes together."""
    found = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                key, _, rest = line.partition(":")
                if key in found:
                    found[key] += int(rest.split()[0]) * 1024
    return Memory(found["Rss"], found["Pss"], found["Anonymous"])


@contextlib.contextmanager
def pinned(
    command: list[str], log: Path, environment: Mapping[str, str] | None = None, core: int = SERVER_CORE
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, whose output goes to *log*; at the end it and all that descend from it are ended."""
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), "env", *settings, *command],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    family: dict[int, float] = {}
    for pid in tree(process.pid):
        with contextlib.suppress(OSError):
            family[pid] = started_at_s(pid)
    process.terminate()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Some servers leave children behind: in their process group, and in their tree as it was.
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid, began_s in family.items():
        with contextlib.suppress(OSError):
            if started_at_s(pid) == began_s:
                os.kill(pid, signal.SIGKILL)


def wait_for(
    check: Callable[[], Found | None], process: subprocess.Popen[bytes], timeout_s: float, every_s: float = 0.02
) -> Found:
    """Ask until there is something true, and return that. Raises NotReady if the process ends or the time passes."""
    until_s = time.monotonic() + timeout_s
    while True:
        if found := check():
            return found
        if process.poll() is not None:
            raise NotReady(f"it ended with exit code {process.returncode}")
        if time.monotonic() > until_s:
            raise NotReady(f"it did not answer rightly within {timeout_s:g} s")
        time.sleep(every_s)  # polled: a server that is not up yet tells nobody


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def describe() -> dict[str, str]:
    """Where and when: processor, cores, kernel, Python, day, and the revision of this repository."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine())  # fmt: skip
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": _revision(),
    }


def _revision() -> str:
    """The commit that is measured, "-dirty" if the code is another; what an earlier part has written is not code."""
    git = ["git", "-C", str(ROOT)]
    told = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    results = [f":(exclude)benchmarks/{name}" for name in ("RESULTS.md", "results.json", "plots")]
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *results],
                             capture_output=True, text=True)  # fmt: skip
    return (told.stdout.strip() or "unknown") + "-dirty" * bool(changed.stdout.strip())


def _stat(path: Path) -> list[str]:
    """The fields of a stat file after the name of the program, which may hold spaces: state first, then the father."""
    return path.read_text().rsplit(")", 1)[1].split()
