"""How control looks into the workers: what it asks by, and the files in which they answer.

Both sides have the run directory and nothing else in common, so no port is opened for it. Control writes the time into
``debug/asked``; each worker sees that within POLL_S and writes what it looks like inside. A worker whose event loop
stands still cannot; a signal has its stacks written all the same, by code that needs neither the loop nor the
interpreter's lock.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Ignored where nobody listens to it, so that it harms no process that by now has the number of a worker.
STACKS = signal.SIGURG
POLL_S = 0.1

_DIRECTORY = "debug"  # in the run directory
_LOOK_S = 0.02
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)\b.*:")


def document_path(run_dir: Path, slot: int, pid: int) -> Path:
    """What a worker looks like inside."""
    return run_dir / _DIRECTORY / f"worker-{slot}-{pid}.json"


def stacks_path(run_dir: Path, slot: int, pid: int) -> Path:
    """Where a worker's stacks are written."""
    return run_dir / _DIRECTORY / f"worker-{slot}-{pid}.stacks"


def asked_ns(run_dir: Path) -> int:
    """When control asked last; 0: never. It takes some microseconds."""
    try:
        return os.stat(run_dir / _DIRECTORY / "asked").st_mtime_ns
    except OSError:
        return 0


def ask(run_dir: Path) -> int:
    """Ask the workers of a run directory. Returns the time by which an answer tells that it is one.

    Where nothing can be written, nobody is asked and no answer comes.
    """
    path = run_dir / _DIRECTORY / "asked"
    now_ns = max(time.time_ns(), asked_ns(run_dir) + 1)  # two who ask at once, or a clock that was put back
    try:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, ns=(now_ns, now_ns))
    except OSError:
        return now_ns
    return asked_ns(run_dir)


def read(path: Path) -> Mapping[str, Any] | None:
    """What a worker has told last; None if it has not."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_bytes())
        return found
    except (OSError, ValueError):
        return None


def answer(path: Path, since_ns: int, deadline_s: float) -> tuple[Mapping[str, Any] | None, bool]:
    """What a worker tells, and whether it is the answer to what was asked at *since_ns*; else it is what it told last.

    deadline_s: on the monotonic clock; blocks until then at the most.
    """
    while True:
        found = read(path)
        is_answer = found is not None and found["asked_ns"] >= since_ns
        if is_answer or time.monotonic() >= deadline_s:
            return found, is_answer
        time.sleep(_LOOK_S)


def take_stacks(path: Path, pid: int, timeout_s: float) -> list[tuple[int, list[str]]]:
    """The stack of each thread of a worker, the innermost call first, by the thread's identity. Blocks.

    Empty if the process is gone, is stopped or cannot write them.
    """
    try:
        os.truncate(path, 0)
        os.kill(pid, STACKS)
    except (FileNotFoundError, ProcessLookupError):
        return []
    deadline_s = time.monotonic() + timeout_s
    text, before = "", ""
    while not text or text != before:  # nothing tells its end, but that nothing more comes
        if time.monotonic() >= deadline_s:
            break
        time.sleep(_LOOK_S)
        before, text = text, path.read_text(errors="replace")
    return _by_thread(text)


def _by_thread(text: str) -> list[tuple[int, list[str]]]:
    found: list[tuple[int, list[str]]] = []
    for line in text.splitlines():
        begin = _THREAD.fullmatch(line.strip())
        if begin is not None:
            found.append((int(begin.group(1), 16), []))
        elif found and line.strip():
            found[-1][1].append(line.strip())
    return found
