"""A slot: one place in the gateway that a process fills, and that is filled again, after a pause, when it dies."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway import marks
from gateway.boot import Boot
from gateway.children import ChildRole, ChildSpec, child_name
from gateway.marks import InFlight
from gateway.settings import Settings, SupervisorSettings
from gateway.template import Forked, Template

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# After so long without a word, of which there is one a second, a process is looked at whether it has been stopped: such
# a one holds its connections and says nothing. Looked at again, as one that is silent while it loads, so often:
_STOPPED_S = 1.5
_LOOK_AGAIN_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all processes of one boot get: settings, boot, the end of their lifeline; and what they are made from."""

    settings: Settings
    boot: Boot
    lifeline_fd: int
    template: Template


class Backoff:
    """The pause before a dead child is started again: doubled with each death in a row, up to a bound."""

    def __init__(self, settings: SupervisorSettings) -> None:
        self._min_s = settings.backoff_min_s
        self._max_s = max(settings.backoff_min_s, settings.backoff_max_s)
        self._stable_after_s = settings.stable_after_s
        self.deaths = 0  # in a row, each after a life shorter than stable_after_s

    def after(self, lived_s: float) -> float:
        """The pause in seconds after a death at the age of *lived_s*."""
        if lived_s >= self._stable_after_s:
            self.deaths = 0
        doublings = min(self.deaths, 60)  # the bound is long reached; a larger power would overflow
        self.deaths += 1
        return float(min(self._max_s, self._min_s * 2**doublings))


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended. returncode: as subprocess says it, negative for a signal. pause_s: before the next one.

    report_fd: what start() gave, now closed. in_flight: the versions that it was busy with. was_hung: it was killed
    since nothing was heard of it.
    """

    pid: int
    report_fd: int
    returncode: int
    lived_s: float
    pause_s: float
    in_flight: tuple[InFlight, ...] = ()
    was_hung: bool = False

    @property
    def is_crash(self) -> bool:
        """Whether it was ended by a signal that does not ask it to end: by itself, by the kernel, by SIGKILL."""
        return self.returncode < 0 and -self.returncode not in _ASKING

    def __str__(self) -> str:
        if self.returncode < 0:
            try:
                return f"killed by {signal.Signals(-self.returncode).name}"
            except ValueError:  # most real-time signals have no name
                return f"killed by signal {-self.returncode}"
        return f"exit code {self.returncode}"


class Slot:
    """One slot, empty at first. Used by the supervisor's thread alone; times are of one monotonic clock, in seconds.

    generation: how many restarts there had been when its settings were read.
    """

    def __init__(
        self,
        role: ChildRole,
        number: int,
        listener: socket.socket | None,
        around: Surroundings,
        *,
        generation: int = 0,
    ) -> None:
        self.role: ChildRole = role
        self.number = number
        self.name = child_name(role, number)
        self.listener = listener
        self.around = around
        self.generation = generation
        self.is_ready = False
        self.kill_at_s = math.inf  # its time is up: to become ready, or to leave
        self.was_late = False
        self.start_at_s = 0.0  # if empty: when to fill it
        self.starts = 0
        settings = around.settings
        self._backoff = Backoff(settings.supervisor)
        self._stable_after_s = settings.supervisor.stable_after_s
        self._heartbeat_timeout_s = settings.supervisor.heartbeat_timeout_s
        self._load_timeout_s = settings.batching.load_timeout_s
        self._heard_s = 0.0
        self._is_excused = False  # silent, and it was told why it is not killed
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._started_s = 0.0
        self._silent_at_s = math.inf
        self._report_fd = -1
        self._marks_fd: int | None = None
        self._was_hung = False
        self._unread = b""

    @property
    def pid(self) -> int | None:
        """The process in the slot, None if it is empty."""
        return None if self._process is None else self._process.pid

    @property
    def deaths_in_a_row(self) -> int:
        return self._backoff.deaths

    @property
    def status_name(self) -> str:
        """The file name of its status document; of its own, since two may fill a place for a moment."""
        return f"{self.name}-{self.pid}.json"

    @property
    def is_crash_looping(self) -> bool:
        """Whether it died more than once without having lived long in between."""
        return self._backoff.deaths > 1

    @property
    def stable_at_s(self) -> float:
        """When its process will have lived long enough for its deaths to be forgotten; infinity without any."""
        return self._started_s + self._stable_after_s if self.is_ready and self._backoff.deaths else math.inf

    def forget_deaths(self) -> None:
        self._backoff.deaths = 0

    @property
    def silent_at_s(self) -> float:
        """When the process is to be looked at if nothing is heard of it; infinity until its first "ready"."""
        return self._silent_at_s

    def start(self, now_s: float, *, suspects: frozenset[tuple[str, str]] = frozenset()) -> int:
        """Fill the slot. Returns the descriptor on which the process reports; the slot closes it. Raises OSError.

        suspects: for a worker, what was in flight when one died lately.
        """
        around = self.around
        self._report_fd, report_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._report_fd, False)
        spec_fd = os.memfd_create(f"sluicegate-{self.name}")
        try:
            if self.role == "worker":
                self._marks_fd = marks.create(f"sluicegate-{self.name}-marks")
            socket_fd = None if self.listener is None else self.listener.fileno()
            spec = ChildSpec(
                role=self.role,
                slot=self.number,
                boot=around.boot.name,
                run_dir=around.boot.run_dir.absolute(),
                settings=around.settings,
                socket_fd=socket_fd,
                report_fd=report_write,
                lifeline_fd=around.lifeline_fd,
                marks_fd=self._marks_fd,
                suspects=suspects,
            )
            os.write(spec_fd, spec.to_json())
            os.lseek(spec_fd, 0, os.SEEK_SET)
            own = {"report_fd": report_write, "socket_fd": socket_fd, "marks_fd": self._marks_fd}
            given = {name: fd for name, fd in own.items() if fd is not None}
            self._process = around.template.fork(spec_fd, given, now_s) or subprocess.Popen(  # noqa: S603 - as below
                # Our own module, under our own interpreter. -P: a file in the current directory must not pass for one.
                [sys.executable, "-P", "-m", "gateway.children", str(spec_fd)],
                pass_fds=[spec_fd, around.lifeline_fd, around.boot.alive_fd, *given.values()],
                stdin=subprocess.DEVNULL,
                env=around.template.environment,
                process_group=0,  # Ctrl-C in the terminal reaches the supervisor alone, which ends all in order
            )
        except OSError:
            os.close(self._report_fd)
            self._close_marks()
            raise
        finally:
            os.close(report_write)
            os.close(spec_fd)
        self.starts += 1
        self._started_s = now_s
        return self._report_fd

    def hear(self, now_s: float) -> bool:
        """Read what the process reports. Returns whether it became ready just now. Raises EOFError at the end."""
        was_ready = self.is_ready
        received = os.read(self._report_fd, 4096)
        if not received:
            raise EOFError
        *words, self._unread = (self._unread + received).split(b"\n")
        if b"ready" in words:
            self.is_ready = True
        self._heard_s = now_s
        self._is_excused = False
        if self.is_ready:
            self._silent_at_s = now_s + min(_STOPPED_S, self._heartbeat_timeout_s)
        return self.is_ready and not was_ready

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
        if self._process is not None:
            self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._silent_at_s = math.inf

    def kill_late(self) -> None:
        """End a process that is not where it should be in its time."""
        self.was_late = True
        self.kill_at_s = math.inf
        self.signal(signal.SIGKILL)

    def is_excused(self, now_s: float) -> bool:
        """Whether a silent process may go on: then it is looked at again soon.

        One that a signal has stopped may not. Else it has the time of the setting, and a worker that is busy loading,
        which may hold the whole process, the time of a load.
        """
        if _is_stopped(self.pid):
            _log.warning("%s has been stopped by a signal", self.name, extra={"pid": self.pid})
            return False
        if now_s - self._heard_s < self._heartbeat_timeout_s:
            self._silent_at_s = min(self._heard_s + self._heartbeat_timeout_s, now_s + _LOOK_AGAIN_S)
            return True
        if self._marks_fd is None or now_s - self._heard_s > self._load_timeout_s:
            return False
        loading = [one for one in marks.read(self._marks_fd) if one.doing == marks.LOADING]
        if not loading:
            return False
        if not self._is_excused:
            self._is_excused = True
            what = ", ".join(f"{one.model}/{one.version}" for one in loading)
            _log.warning("%s is silent while it loads %s: it gets more time", self.name, what, extra={"pid": self.pid})
        self._silent_at_s = now_s + _LOOK_AGAIN_S
        return True

    def kill_hung(self) -> None:
        """End a process that has gone silent."""
        self._was_hung = True
        self.signal(signal.SIGKILL)

    def reap(self, now_s: float) -> Death | None:
        """Empty the slot if its process has ended, and set the time of the next start."""
        if self._process is None or (returncode := self._process.poll()) is None:
            return None
        pid = self._process.pid
        self._process = None
        self.is_ready = False
        self._silent_at_s = math.inf
        self._unread = b""
        os.close(self._report_fd)
        lived_s = now_s - self._started_s
        in_flight = () if self._marks_fd is None else marks.read(self._marks_fd)
        self._close_marks()
        was_hung, self._was_hung = self._was_hung, False
        pause_s = self.postpone(now_s, lived_s)
        return Death(pid, self._report_fd, returncode, lived_s, pause_s, in_flight, was_hung)

    def _close_marks(self) -> None:
        if self._marks_fd is not None:
            os.close(self._marks_fd)
            self._marks_fd = None

    def postpone(self, now_s: float, lived_s: float) -> float:
        """Set the time of the next start after a death at the age of *lived_s*; returns the pause in seconds."""
        pause_s = self._backoff.after(lived_s)
        self.start_at_s = now_s + pause_s
        return pause_s


def _is_stopped(pid: int | None) -> bool:
    """Whether a process stands still since a signal told it to. One that a debugger holds does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it is gone
        return False
    return stat[stat.rindex(b")") + 2 :].startswith(b"T")
