"""One boot of the gateway in a state directory: its name, its run directory, and the locks that keep others out."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import CannotStart

METRICS_DIRECTORY = "metrics"
STATUS_DIRECTORY = "status"

# Written into a run directory with the parts that the boot runs; locked by the supervisor and all its children, so
# that the lock is free only when the last of them is gone.
_ALIVE = "alive"
_RETRY_S = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Boot:
    """A claimed state directory. alive_fd: to be inherited by every child and never touched by it."""

    name: str
    run_dir: Path
    alive_fd: int
    part_fds: tuple[int, ...]

    @property
    def metrics_dir(self) -> Path:
        return self.run_dir / METRICS_DIRECTORY

    @property
    def status_dir(self) -> Path:
        return self.run_dir / STATUS_DIRECTORY

    def release(self) -> None:
        """Remove the run directory and let the state go. Only once all children are gone."""
        shutil.rmtree(self.run_dir, ignore_errors=True)
        for fd in (self.alive_fd, *self.part_fds):
            os.close(fd)


def claim(state: Path, parts: Sequence[str], *, wait_s: float) -> Boot:
    """Take *state* for the named *parts* (serving, control, monitor) and make a fresh run directory in it.

    Run directories of dead boots are removed. Children of a supervisor that was killed get *wait_s* to leave. Raises
    CannotStart if another supervisor runs one of the parts there, or if the directory cannot be used.
    """
    runs = state / "run"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)  # samples and tokens are nobody else's business
        runs.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            part_fds = _lock_parts(runs, parts, state, on_failure)
            claimed = _enter(runs, parts, part_fds, wait_s)
            on_failure.pop_all()
            return claimed
    except OSError as error:
        raise CannotStart(
            f"cannot use the state directory {state}: {error.strerror}; name another one with --state"
        ) from error


def holder(state: Path, part: str) -> int | None:
    """The process that runs *part* on *state*; None if there is none."""
    try:
        with (state / "run" / f"{part}.lock").open("rb") as lock:
            if not _try_lock(lock.fileno()):
                return int(lock.read(20))
    except (OSError, ValueError):
        pass
    return None


def _lock_parts(runs: Path, parts: Sequence[str], state: Path, on_failure: contextlib.ExitStack) -> tuple[int, ...]:
    held: list[int] = []
    for part in parts:
        fd = _open(runs / f"{part}.lock")
        on_failure.callback(os.close, fd)
        if not _try_lock(fd):
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise CannotStart(
                f"another sluicegate (process {holder}) runs {part} on the state directory {state}; "
                f"stop it, or name another directory with --state"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        held.append(fd)
    return tuple(held)


def _enter(runs: Path, parts: Sequence[str], part_fds: tuple[int, ...], wait_s: float) -> Boot:
    """Sweep the run directories and make our own, under a lock against boots of other parts that do the same."""
    deadline = time.monotonic() + wait_s
    waiting = False
    while True:
        sweep_fd = _open(runs / "sweep.lock")
        try:
            fcntl.flock(sweep_fd, fcntl.LOCK_EX)
            orphaned = _sweep(runs, parts)
            if not orphaned:
                return _new_boot(runs, parts, part_fds)
        finally:
            os.close(sweep_fd)
        if not waiting:
            waiting = True
            _log.warning("waiting for the children of a supervisor that was killed", extra={"boot": orphaned.name})
        if time.monotonic() > deadline:
            raise CannotStart(f"processes of a supervisor that was killed still run ({orphaned}); end them first")
        time.sleep(_RETRY_S)


def _sweep(runs: Path, parts: Sequence[str]) -> Path | None:
    """Remove the run directories of dead boots; return one whose children still run one of our *parts*."""
    orphaned = None
    for run_dir in sorted(path for path in runs.iterdir() if path.is_dir()):
        fd = _open(run_dir / _ALIVE)
        try:
            if _try_lock(fd):
                shutil.rmtree(run_dir, ignore_errors=True)
            elif set(os.pread(fd, 100, 0).decode().split()) & set(parts):
                orphaned = run_dir
        finally:
            os.close(fd)
    return orphaned


def _new_boot(runs: Path, parts: Sequence[str], part_fds: tuple[int, ...]) -> Boot:
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + secrets.token_hex(2)
    run_dir = runs / name
    run_dir.mkdir()
    (run_dir / METRICS_DIRECTORY).mkdir()
    (run_dir / STATUS_DIRECTORY).mkdir()
    alive_fd = _open(run_dir / _ALIVE)
    os.pwrite(alive_fd, " ".join(parts).encode(), 0)
    fcntl.flock(alive_fd, fcntl.LOCK_EX)
    return Boot(name, run_dir, alive_fd, part_fds)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
