"""A child of the supervisor: reads its orders from an inherited file, then runs one room until it is told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gateway import logs, orphans, settings
from gateway.errors import GatewayError
from gateway.settings import Settings

ChildRole = Literal["worker", "control", "monitor", "follower", "exporter"]

# After its last chance to finish requests, time for a child to flush logs and leave before it is killed.
FLUSH_GRACE_S = 5.0
# Connections that may wait to be accepted; the kernel's net.core.somaxconn bounds it too.
BACKLOG = 2048

# Drift can wait for a processor, predictions cannot.
_MONITOR_NICENESS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The orders of one child.

    socket_fd: its bound socket, None for monitor and follower. report_fd: write end of the pipe on which it says
    "ready" and "beat". lifeline_fd: read end of a pipe on which nothing is ever written; end of file means that the
    supervisor died. marks_fd: where a worker notes what it runs, None for others. suspects: model and version of all
    that was in flight when a worker died lately.
    """

    role: ChildRole
    slot: int
    boot: str
    run_dir: Path
    settings: Settings
    socket_fd: int | None
    report_fd: int
    lifeline_fd: int
    marks_fd: int | None = None
    suspects: frozenset[tuple[str, str]] = frozenset()

    @property
    def name(self) -> str:
        """How logs call the child: ``worker-0``, ``control``, ``monitor``, ``follower``, ``exporter``."""
        return child_name(self.role, self.slot)

    def to_json(self) -> bytes:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain |= {"run_dir": str(self.run_dir), "settings": settings.to_plain(self.settings)}
        plain |= {"suspects": sorted(self.suspects)}
        return json.dumps(plain).encode()


def parse(raw: bytes) -> ChildSpec:
    """The inverse of ChildSpec.to_json."""
    plain = json.loads(raw)
    if plain["role"] not in get_args(ChildRole):
        raise ValueError(f"unknown role {plain['role']!r}")
    plain |= {"run_dir": Path(plain["run_dir"]), "settings": settings.from_plain(plain["settings"])}
    plain |= {"suspects": frozenset((model, version) for model, version in plain["suspects"])}
    return ChildSpec(**plain)


def child_name(role: ChildRole, slot: int) -> str:
    return f"worker-{slot}" if role == "worker" else role


def main(spec_fd: int) -> int:
    """Run the child whose orders stand in *spec_fd*. Returns the exit code."""
    gc.disable()  # imports make no garbage, and looking for it would take a tenth of a worker's start
    with open(spec_fd, "rb") as file:
        return run(parse(file.read()))


def run(spec: ChildSpec) -> int:
    """Be the child with these orders. Returns the exit code: 0 told to stop, 1 failed."""
    logs.set_up(spec.name, level=spec.settings.log.level)
    with contextlib.suppress(OSError):  # what ps, top and py-spy call it
        Path("/proc/self/comm").write_text(spec.name)
    orphans.at_death_of_parent(signal.SIGCONT)  # one that a signal has stopped would keep the next boot out for ever
    guard = threading.Thread(target=_leave_with_supervisor, args=(spec,), name="lifeline", daemon=True)
    guard.start()
    try:
        _run_room(spec, _reporter(spec.report_fd))
    except GatewayError as error:
        _log.error("%s stops: %s", spec.name, error, extra={"code": error.code})
        return 1
    except Exception:  # whatever a room let through: it belongs in the log, as one record, not on a bare stderr
        _log.exception("%s stops on an error that nobody expected", spec.name)
        return 1
    return 0


def _run_room(spec: ChildSpec, report: Callable[[str], None]) -> None:
    """Import only the room of this role, so that a worker stays small, and stay in it until it returns."""
    if spec.role == "monitor":
        os.nice(_MONITOR_NICENESS)  # before its imports: they compete with those of the workers
        from gateway.offline.process import run_monitor

        gc.enable()
        run_monitor(spec.settings, boot=spec.boot, run_dir=spec.run_dir, report=report, lifeline_fd=spec.lifeline_fd)
        return
    if spec.role == "follower":
        from gateway.following.app import run_follower

        gc.enable()
        run_follower(spec.settings, boot=spec.boot, run_dir=spec.run_dir, report=report, lifeline_fd=spec.lifeline_fd)
        return
    assert spec.socket_fd is not None
    listener = socket.socket(fileno=spec.socket_fd)
    report = _listening_when_ready(report, listener)
    if spec.role == "exporter":
        from gateway.exporter import run_exporter

        gc.enable()
        run_exporter(run_dir=spec.run_dir, listener=listener, report=report, lifeline_fd=spec.lifeline_fd)
    elif spec.role == "control":
        from gateway.control.app import run_control

        gc.enable()
        run_control(
            spec.settings,
            boot=spec.boot,
            run_dir=spec.run_dir,
            listener=listener,
            report=report,
            lifeline_fd=spec.lifeline_fd,
        )
    else:
        from gateway.serving.app import run_worker

        gc.enable()
        run_worker(
            spec.settings,
            slot=spec.slot,
            boot=spec.boot,
            run_dir=spec.run_dir,
            listener=listener,
            report=report,
            lifeline_fd=spec.lifeline_fd,
            marks_fd=spec.marks_fd,
            suspects=spec.suspects,
        )


def _reporter(fd: int) -> Callable[[str], None]:
    """A report function that never blocks and never raises: a supervisor that is gone or busy must not harm a child."""
    os.set_blocking(fd, False)

    def report(word: str) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(fd, word.encode() + b"\n")

    return report


def _listening_when_ready(report: Callable[[str], None], listener: socket.socket) -> Callable[[str], None]:
    """A report function that keeps what "ready" promises: the room's server may be a moment behind with listening."""

    def listen_and_report(word: str) -> None:
        if word == "ready":
            with contextlib.suppress(OSError):  # the room is on its way out and has closed it
                listener.listen(BACKLOG)
        report(word)

    return listen_and_report


def _leave_with_supervisor(spec: ChildSpec) -> None:
    """The last resort (own thread): a room stops by itself when the lifeline ends; one that hangs is ended here."""
    poll = select.poll()
    poll.register(spec.lifeline_fd, select.POLLIN)
    poll.poll()
    if spec.role == "monitor":  # the next supervisor waits for it, and on a busy machine its step may take very long
        _log.warning("the supervisor is gone; the monitor leaves as it stands")
        os._exit(0)
    time.sleep(spec.settings.server.drain_timeout_s + FLUSH_GRACE_S)
    _log.error("%s did not stop after its supervisor died; it is ended now", spec.name)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
