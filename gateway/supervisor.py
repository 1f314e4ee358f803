"""The supervisor: owns the sockets, starts the children, starts again what dies, and ends all in order."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from gateway import __version__, boot, quarantine, sockets, threads
from gateway.children import FLUSH_GRACE_S
from gateway.errors import CannotStart, QuarantineUnavailable
from gateway.marks import ON_LOOP
from gateway.quarantine import Quarantined
from gateway.settings import Settings
from gateway.slots import Death, Slot, Surroundings
from gateway.suspects import WINDOW_S, Suspects, Verdict

if TYPE_CHECKING:
    from gateway.metrics import SupervisorMetrics

Role = Literal["all", "serving", "control", "monitor"]

# Control and monitor hold no client's request; they only finish what they are writing.
_CLOSE_TIMEOUT_S = 5.0
# What everybody has left after a second signal.
_HURRY_TIMEOUT_S = 1.0
# From this many deaths in a row on, new connections go to the other workers instead of waiting for this one.
_PARK_AFTER_DEATHS = 2

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


def run(settings: Settings, *, role: Role, ready_file: Path | None, environment: MutableMapping[str, str]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP has ended it all. Must be called on the main thread of a fresh process.

    ready_file: gets the bound addresses and the pids of the ready children as JSON once all were ready; rewritten when
    one dies or is replaced, removed at the end. environment: os.environ; the metrics directory is put into it, for this
    process and the children. Raises CannotStart; InvalidSetting for a certificate, key or store that cannot be used.
    """
    parts = ("serving", "control", "monitor") if role == "all" else (role,)
    for part, section, port in (("serving", "server", settings.server), ("control", "control", settings.control)):
        if part in parts and port.tls_certificate:
            from gateway import tls  # here and not above: most gateways need no OpenSSL

            # told now, not by each child
            tls.server_context(port.tls_certificate, port.tls_key, port.tls_client_ca, section=section)
    if settings.flags.is_shared and parts != ("monitor",):
        _check_shared_store(settings.flags.store)
    if ready_file is not None:
        if not ready_file.parent.is_dir():
            raise CannotStart(f"there is no directory {ready_file.parent} for the ready file; create it")
        ready_file.unlink(missing_ok=True)  # left by a gateway that was killed, it would lie about this one
    with contextlib.ExitStack() as stack:
        wait_s = settings.server.drain_timeout_s + 2 * FLUSH_GRACE_S
        claimed = boot.claim(settings.paths.state, parts, wait_s=wait_s)
        stack.callback(claimed.release)
        slots = _slots(settings, parts, stack)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(claimed.metrics_dir.absolute())
        lifeline_fd, lifeline_write = os.pipe()
        stack.callback(os.close, lifeline_fd)
        stack.callback(os.close, lifeline_write)
        if ready_file is not None:
            stack.callback(ready_file.unlink, missing_ok=True)
        around = Surroundings(settings, claimed, lifeline_fd, environment)
        Supervisor(slots, around, ready_file=ready_file, clock=time.monotonic).run()


def _slots(settings: Settings, parts: tuple[str, ...], stack: contextlib.ExitStack) -> list[Slot]:
    """The slots of *parts*, workers first, with their sockets bound; *stack* closes those."""
    slots: list[Slot] = []
    if "serving" in parts:
        server = settings.server
        bound = sockets.bind_all(server.host, server.port, server.workers, what="the data plane")
        slots += [
            Slot("worker", number, stack.enter_context(each), settings.supervisor) for number, each in enumerate(bound)
        ]
        if settings.flags.is_shared:
            slots.append(Slot("follower", 0, None, settings.supervisor))
    if "control" in parts:
        (one,) = sockets.bind_all(settings.control.host, settings.control.port, 1, what="the control plane")
        slots.append(Slot("control", 0, stack.enter_context(one), settings.supervisor))
    if "monitor" in parts:
        slots.append(Slot("monitor", 0, None, settings.supervisor))
    if (address := settings.metrics.address) is not None:
        (one,) = sockets.bind_all(*address, 1, what="the port of the metrics")
        slots.append(Slot("exporter", 0, stack.enter_context(one), settings.supervisor))
    return slots


class Supervisor:
    """The loop over the slots of one boot. One thread; nothing in it blocks for longer than small files take."""

    def __init__(
        self, slots: list[Slot], around: Surroundings, *, ready_file: Path | None, clock: Callable[[], float]
    ) -> None:
        self._slots = slots
        self._around = around
        self._settings = around.settings
        self._ready_file = ready_file
        self._clock = clock
        self._suspects = Suspects()
        self._selector = selectors.DefaultSelector()
        self._metrics: SupervisorMetrics
        self._processors = len(os.sched_getaffinity(0))
        self._was_ready = False  # all slots were, at some time
        self._stop_signals = 0
        self._closing = False  # the workers have left; control and monitor are told to
        self._kill_at_s = 0.0

    def run(self) -> None:
        """Fill the slots and keep them filled until a signal has ended it."""
        if any(slot.role == "worker" for slot in self._slots):
            threads.warn(self._settings, self._processors)
        with _signal_numbers() as wakeup_fd, self._selector:
            self._selector.register(wakeup_fd, selectors.EVENT_READ, None)
            self._step()  # the children first: what is imported next takes longer than to start them all
            self._metrics = _restart_metrics(self._slots)
            self._metrics.processors.set(self._processors)
            while self._step():
                for key, _events in self._selector.select(self._pause_s()):
                    if key.data is None:
                        self._on_signals(os.read(wakeup_fd, 256))
                    else:
                        self._on_report(key.data, key.fd)
        _log.info("stopped")

    # -- children ------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Do whatever is due by now. Returns False when all has ended."""
        now_s = self._clock()
        for slot in self._slots:
            self._reap(slot, now_s)
            if slot.silent_at_s <= now_s:
                _log.error("%s is silent and is killed", slot.name, extra={"pid": slot.pid})
                slot.kill_hung()
            elif slot.pid is None and slot.start_at_s <= now_s and not self._stop_signals:
                self._start(slot, now_s)
        if self._stop_signals:
            self._step_to_the_end(now_s)
        return not self._stop_signals or any(slot.pid for slot in self._slots)

    def _pause_s(self) -> float | None:
        """Until the next thing is due; None if only an event can bring one."""
        due = [slot.silent_at_s for slot in self._slots]
        if self._stop_signals:
            due.append(self._kill_at_s)
        else:
            due += [slot.start_at_s for slot in self._slots if slot.pid is None]
        return max(0.0, min(due) - self._clock()) if min(due) < math.inf else None

    def _start(self, slot: Slot, now_s: float) -> None:
        try:
            report_fd = slot.start(self._around, now_s, suspects=self._suspects.names(now_s))
        except OSError as error:  # no memory or no process to be had: that may pass
            pause_s = slot.postpone(now_s, 0.0)
            _log.error("%s cannot be started: %s; tried again in %.1f s", slot.name, error, pause_s)
            return
        self._selector.register(report_fd, selectors.EVENT_READ, slot)
        if slot.starts > 1:
            self._metrics.restarts.labels(slot.role).inc()

    def _on_report(self, slot: Slot, report_fd: int) -> None:
        try:
            is_newly_ready = slot.hear(self._clock())
        except EOFError:  # it is dying; SIGCHLD comes next
            self._selector.unregister(report_fd)
            return
        if is_newly_ready:
            _log.info("%s is ready", slot.name, extra={"pid": slot.pid})
            self._tell_ready()

    def _reap(self, slot: Slot, now_s: float) -> None:
        death = slot.reap(now_s)
        if death is None:
            return
        with contextlib.suppress(KeyError):  # unless the end of its pipe was seen before
            self._selector.unregister(death.report_fd)
        self._clear_away(slot, death.pid)
        if self._stop_signals:
            if death.returncode not in (0, -signal.SIGTERM):
                _log.warning("%s did not end well: %s", slot.name, death)
            return
        _log.error(
            "%s died: %s; started again in %.1f s",
            slot.name,
            death,
            death.pause_s,
            extra={"pid": death.pid, "lived_s": round(death.lived_s, 1), "deaths_in_a_row": slot.deaths_in_a_row},
        )
        self._find_guilty(death, now_s)
        if slot.listener is not None and slot.deaths_in_a_row >= _PARK_AFTER_DEATHS:
            sockets.park(slot.listener)
        self._tell_ready()

    def _clear_away(self, slot: Slot, pid: int) -> None:
        """Keep the counts of a dead process, and remove what would make it look alive."""
        from gateway import metric_files

        try:
            metric_files.fold(self._around.boot.metrics_dir, pid)
        except (OSError, ValueError) as error:
            _log.warning("metrics of the dead %s: %s", slot.name, error, extra={"pid": pid})
        if slot.role == "worker":
            (self._around.boot.status_dir / f"{slot.name}.json").unlink(missing_ok=True)

    def _find_guilty(self, death: Death, now_s: float) -> None:
        """Quarantine what killed a worker for the second time, before its replacement is started."""
        if not death.is_crash:
            return
        if death.was_hung:  # a run in a thread cannot hold up the signs of life
            silent_s = self._settings.supervisor.heartbeat_timeout_s
            found = [one for one in death.in_flight if one.doing == ON_LOOP]
        else:
            silent_s, found = 0.0, list(death.in_flight)
        was_killed = death.returncode == -signal.SIGKILL
        for verdict in self._suspects.note(found, now_s, silent_s=silent_s, was_killed=was_killed):
            self._carry_out(verdict, death)

    def _carry_out(self, verdict: Verdict, death: Death) -> None:
        model, version, digest = verdict.key
        seen = f"in flight at {verdict.deaths} deaths of workers within {WINDOW_S:g} s, the last one {death}"
        if verdict.is_spared:
            _log.error(
                "%s/%s was %s; it is kept, since its route gives it by default: release another version",
                *verdict.key[:2],
                seen,
            )
            return
        ts = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            quarantine.add(self._settings.quarantine_path, [Quarantined(model, version, digest, seen, ts)])
        except QuarantineUnavailable as error:  # tried again at the next death
            _log.error("%s/%s was %s and cannot be quarantined: %s", model, version, seen, error)
            return
        self._suspects.forget(verdict.key)
        _log.error(
            "%s/%s is quarantined: %s. Its share goes to the default variant. Put another package in its place, or "
            "lift it: sluicegate models quarantine lift %s %s --reason ...",
            *(model, version, seen, model, version),
            extra={"model": model, "version": version, "digest": digest},
        )

    # -- the end -------------------------------------------------------------------------------------

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number != signal.SIGCHLD:  # that one only wakes the loop, and the next step reaps
                self._stop(signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        """First signal: workers finish what is in flight. Second: everybody hurries. Third: killed."""
        self._stop_signals += 1
        now_s = self._clock()
        if self._stop_signals == 1:
            _log.info("stopping on %s", number.name)
            self._kill_at_s = now_s + self._settings.server.drain_timeout_s + FLUSH_GRACE_S
            for slot in self._slots:
                if slot.role == "worker":
                    # Our copy of the socket would keep taking connections that nobody accepts.
                    if slot.listener is not None:
                        slot.listener.close()
                    slot.signal(signal.SIGTERM)
            return
        _log.warning("%s again: %s", number.name, "hurrying" if self._stop_signals == 2 else "killing what is left")
        for slot in self._slots:
            slot.signal(signal.SIGTERM)
        self._kill_at_s = min(self._kill_at_s, now_s + (_HURRY_TIMEOUT_S if self._stop_signals == 2 else 0.0))

    def _step_to_the_end(self, now_s: float) -> None:
        """Workers leave first, so that control and monitor see their last counts and samples."""
        if not self._closing and not any(slot.pid for slot in self._slots if slot.role == "worker"):
            self._closing = True
            for slot in self._slots:
                slot.signal(signal.SIGTERM)
            self._kill_at_s = now_s + (_CLOSE_TIMEOUT_S if self._stop_signals == 1 else _HURRY_TIMEOUT_S)
        if now_s >= self._kill_at_s:
            for slot in self._slots:
                if slot.pid is not None and (self._closing or slot.role == "worker"):
                    _log.error("%s did not stop in time and is killed", slot.name, extra={"pid": slot.pid})
                    slot.signal(signal.SIGKILL)
            self._kill_at_s = math.inf

    # -- what others are told --------------------------------------------------------------------------

    def _tell_ready(self) -> None:
        """Once every slot was ready: write the ready file, and from then on keep it true; until the end begins."""
        if self._stop_signals:  # a child may become ready even then; the workers' sockets are closed already
            return
        if not self._was_ready:
            if not all(slot.is_ready for slot in self._slots):
                return
            self._was_ready = True
            self._greet()
        if self._ready_file is not None:
            try:
                _write_whole(self._ready_file, json.dumps(self._addresses(), indent=1) + "\n")
            except OSError as error:  # a full disk is no reason to stop serving
                _log.error("cannot write the ready file %s: %s", self._ready_file, error.strerror)

    def _addresses(self) -> dict[str, Any]:
        def address(role: str) -> dict[str, Any] | None:
            listener = next((slot.listener for slot in self._slots if slot.role == role and slot.listener), None)
            if listener is None:
                return None
            host, port = listener.getsockname()[:2]
            tls = bool((self._settings.server if role == "worker" else self._settings.control).tls_certificate)
            return {"host": host, "port": port, "url": sockets.url_of(listener, tls=tls)}

        return {
            "data": address("worker"),
            "control": address("control"),
            "metrics": address("exporter"),
            "pid": os.getpid(),
            "boot": self._around.boot.name,
            "run_dir": str(self._around.boot.run_dir.absolute()),
            "children": [
                {"role": slot.role, "slot": slot.number, "pid": slot.pid} for slot in self._slots if slot.is_ready
            ],
        }

    def _greet(self) -> None:
        addresses = self._addresses()
        urls = {name: addresses[name]["url"] for name in ("data", "control", "metrics") if addresses[name]}
        if not sys.stderr.isatty():
            _log.info("ready", extra=urls)
            return
        lines = [f"\nsluicegate {__version__} is ready; Ctrl-C stops it."]
        if "data" in urls:
            lines.append(f"  predictions  {urls['data']}")
        if "control" in urls:
            lines.append(f"  admin        {urls['control']}")
            lines.append(f"  admin token  in {self._settings.admin_token_path}")
        if "metrics" in urls:
            lines.append(f"  metrics      {urls['metrics']}/metrics")
        sys.stderr.write("\n".join(lines) + "\n\n")


def _check_shared_store(url: str) -> None:
    """What no child could serve with is told before any is started. Raises CannotStart, InvalidSetting."""
    if importlib.util.find_spec("psycopg") is None:
        raise CannotStart("flags.store names a PostgreSQL database; pip install 'sluicegate[postgres]' to reach it")
    from gateway.flags import pglink  # here and not above: most gateways have no database

    pglink.read_address(url, application="sluicegate")


def _restart_metrics(slots: list[Slot]) -> SupervisorMetrics:
    # Imported late: prometheus_client looks at PROMETHEUS_MULTIPROC_DIR when it is imported, and run() sets that.
    from gateway import metrics

    counts = metrics.SupervisorMetrics(metrics.process_registry())
    for slot in slots:
        counts.restarts.labels(slot.role)  # so that there is a zero before the first restart
    return counts


def _write_whole(path: Path, text: str) -> None:
    """Replace *path* in one step: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextlib.contextmanager
def _signal_numbers() -> Iterator[int]:
    """A file descriptor from which the numbers of the signals can be read that came in, one byte each."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, _noted) for number in (*_STOP_SIGNALS, signal.SIGCHLD)}
    wakeup_before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield read_fd
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The interpreter has written the number to the wakeup file; the loop does the rest."""
