"""The supervisor: owns the sockets, starts the children, starts again what dies, and ends all in order."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway import boot, orphans, preflight, reload, sockets, threads, wakeup
from gateway.children import FLUSH_GRACE_S
from gateway.errors import CannotStart, GatewayError
from gateway.inquest import Inquest
from gateway.notices import Notices
from gateway.orders import ANNOUNCE, HURRY
from gateway.rolling import OUTCOMES, Rolling
from gateway.settings import Settings
from gateway.slots import Slot, Surroundings
from gateway.template import Template

if TYPE_CHECKING:
    from gateway.metrics import SupervisorMetrics

Role = Literal["all", "serving", "control", "monitor"]

# Control and monitor hold no client's request; they only finish what they are writing.
_CLOSE_TIMEOUT_S = 5.0
# What everybody has left after a second signal.
_HURRY_TIMEOUT_S = 1.0
# From this many deaths in a row on, new connections go to the other workers instead of waiting for this one.
_PARK_AFTER_DEATHS = 2
# What waits at a worker that comes back sooner than that is not cut off for it.
_PARK_FROM_S = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_log = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    role: Role,
    ready_file: Path | None,
    environment: MutableMapping[str, str],
    reread: Callable[[], Settings],
) -> int:
    """Serve until SIGTERM or SIGINT has ended it all, and return the exit code: 0, or 128 + the number of a second
    signal. SIGHUP restarts the workers. Must be called on the main thread of a fresh process.

    ready_file: gets the bound addresses and the pids of the ready children as JSON once all were ready; rewritten when
    one dies or is replaced, removed at the end. environment: os.environ; the metrics directory is put into it, for this
    process and the children. reread: the settings as they are when it is called. Raises CannotStart; InvalidSetting
    for a certificate, key or store that cannot be used.
    """
    signal.signal(signal.SIGTERM, wakeup.leave)  # until the loop takes it: process 1 of a container would ignore it
    parts = ("serving", "control", "monitor") if role == "all" else (role,)
    preflight.check_certificates(settings, parts)
    if "serving" in parts:
        preflight.check_tracing(settings)
    if settings.flags.is_shared and parts != ("monitor",):
        preflight.check_shared_store(settings.flags.store)
    if ready_file is not None:
        if not ready_file.parent.is_dir():
            raise CannotStart(f"there is no directory {ready_file.parent} for the ready file; create it")
        ready_file.unlink(missing_ok=True)  # left by a gateway that was killed, it would lie about this one
    with contextlib.ExitStack() as stack:
        wait_s = settings.server.drain_timeout_s + 2 * FLUSH_GRACE_S
        claimed = boot.claim(settings.paths.state, parts, wait_s=wait_s)
        stack.callback(claimed.release)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(claimed.metrics_dir.absolute())
        lifeline_fd, lifeline_write = os.pipe()
        stack.callback(os.close, lifeline_fd)
        stack.callback(os.close, lifeline_write)
        if ready_file is not None:
            stack.callback(ready_file.unlink, missing_ok=True)
        template = Template(environment, (lifeline_fd, claimed.alive_fd))
        stack.callback(template.end)
        around = Surroundings(settings, claimed, lifeline_fd, template)
        slots = _slots(around, parts, stack)
        supervisor = Supervisor(slots, around, ready_file=ready_file, reread=reread, clock=time.monotonic)
        supervisor.run()
        return supervisor.exit_code


def _slots(around: Surroundings, parts: tuple[str, ...], stack: contextlib.ExitStack) -> list[Slot]:
    """The slots of *parts*, workers first, with their sockets bound; *stack* closes those."""
    slots: list[Slot] = []
    settings = around.settings
    if "serving" in parts:
        server = settings.server
        bound = sockets.bind_all(server.host, server.port, server.workers, what="the data plane")
        slots += [Slot("worker", number, stack.enter_context(each), around) for number, each in enumerate(bound)]
        if settings.flags.is_shared:
            slots.append(Slot("follower", 0, None, around))
    if "control" in parts:
        (one,) = sockets.bind_all(settings.control.host, settings.control.port, 1, what="the control plane")
        slots.append(Slot("control", 0, stack.enter_context(one), around))
    if "monitor" in parts:
        slots.append(Slot("monitor", 0, None, around))
    if (address := settings.metrics.address) is not None:
        (one,) = sockets.bind_all(*address, 1, what="the port of the metrics")
        slots.append(Slot("exporter", 0, stack.enter_context(one), around))
    return slots


class Supervisor:
    """The loop over the slots of one boot. One thread; nothing in it blocks for longer than small files take."""

    def __init__(
        self,
        slots: list[Slot],
        around: Surroundings,
        *,
        ready_file: Path | None,
        reread: Callable[[], Settings],
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._around = around
        self._template = around.template
        self._settings = around.settings
        self._reread = reread
        self._clock = clock
        self._inquest = Inquest(around.settings.quarantine_path)
        self._notices = Notices(slots, around.settings, around.boot, ready_file)
        self._rolling = Rolling(slots, around.boot.status_dir, start=self._start, tell=self._on_restart)
        self._had_terminal = wakeup.has_terminal()
        self._selector = selectors.DefaultSelector()
        self._metrics: SupervisorMetrics
        self._processors = len(os.sched_getaffinity(0))
        self._stop_signals = 0
        self._close_at_s = math.inf  # the port is closed: until then, a gateway that stops still takes connections
        self._closing = False  # the workers have left; control and monitor are told to
        self._kill_at_s = self._hurry_until_s = math.inf
        self.exit_code = 0  # once it has ended; of a second signal, as if that had ended the process

    def run(self) -> None:
        """Fill the slots and keep them filled until a signal has ended it."""
        if any(slot.role == "worker" for slot in self._slots):
            threads.warn(self._settings, self._processors)
            self._template.begin(self._selector)
        with wakeup.signal_numbers(_SIGNALS) as wakeup_fd, self._selector:
            self._selector.register(wakeup_fd, selectors.EVENT_READ, None)
            self._step()  # processes first: what is imported next takes longer than to start them all
            self._metrics = _restart_metrics(self._slots)
            self._metrics.processors.set(self._processors)
            self._tell_health()
            while self._step():
                for key, _events in self._selector.select(self._pause_s()):
                    if key.data is None:
                        self._on_signals(os.read(wakeup_fd, 256))
                    elif isinstance(key.data, Slot):
                        self._on_report(key.data, key.fd)
                    else:
                        key.data()  # the template
        _log.info("stopped")

    # -- children ------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Do whatever is due by now. Returns False when all has ended."""
        now_s = self._clock()
        self._template.step(now_s)
        may_start = not self._stop_signals and not self._template.is_warming
        for slot in self._everybody():
            self._reap(slot, now_s)
            if slot.kill_at_s <= now_s and slot.pid is not None:
                _log.error("%s had its time and is killed", slot.name, extra={"pid": slot.pid})
                slot.kill_late()
            elif slot.silent_at_s <= now_s and not slot.is_excused(now_s):
                _log.error("%s is silent and is killed", slot.name, extra={"pid": slot.pid})
                slot.kill_hung()
            elif slot.stable_at_s <= now_s:
                slot.forget_deaths()
                self._tell_health()
            elif slot.pid is None and slot.start_at_s <= now_s and may_start and slot in self._slots:
                self._start(slot, now_s)
        orphans.bury({self._template.pid, *(slot.pid for slot in self._everybody())})
        if self._stop_signals:
            self._step_to_the_end(now_s)
        elif may_start:
            self._rolling.step(now_s)
        return not self._stop_signals or any(slot.pid for slot in self._everybody())

    def _everybody(self) -> list[Slot]:
        return [*self._slots, *self._rolling.extra]

    def _workers(self) -> list[Slot]:
        return [slot for slot in self._everybody() if slot.role == "worker"]

    def _pause_s(self) -> float | None:
        """Until the next thing is due; None if only an event can bring one."""
        everybody = self._everybody()
        due = [slot.silent_at_s for slot in everybody] + [slot.stable_at_s for slot in everybody]
        due += [slot.kill_at_s for slot in everybody if slot.pid is not None]
        due.append(self._template.due_s)
        if self._stop_signals:
            due += [self._kill_at_s, self._close_at_s, self._hurry_until_s]
        elif not self._template.is_warming:
            due += [slot.start_at_s for slot in self._slots if slot.pid is None]
            due.append(self._rolling.due_s(self._clock()))
        return max(0.0, min(due) - self._clock()) if min(due) < math.inf else None

    def _start(self, slot: Slot, now_s: float) -> None:
        try:
            report_fd = slot.start(now_s, suspects=self._inquest.suspects(now_s))
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
            self._tell_health()  # before the ready file: who waits for that may ask the exporter next
            if not self._stop_signals:  # a child may become ready even then
                self._park_idle(self._clock())
                self._notices.tell_ready()

    def _reap(self, slot: Slot, now_s: float) -> None:
        death = slot.reap(now_s)
        if death is None:
            return
        with contextlib.suppress(KeyError):  # unless the end of its pipe was seen before
            self._selector.unregister(death.report_fd)
        self._clear_away(slot, death.pid)
        if self._rolling.bury(slot, death):
            return
        if self._stop_signals:
            if death.returncode not in (0, -signal.SIGTERM):
                _log.warning("%s did not end well: %s", slot.name, death)
            if self._close_at_s < math.inf:
                self._park(slot)  # nobody comes to take what would wait there
            return
        _log.error(
            "%s died: %s; started again in %.1f s",
            slot.name,
            death,
            death.pause_s,
            extra={"pid": death.pid, "lived_s": round(death.lived_s, 1), "deaths_in_a_row": slot.deaths_in_a_row},
        )
        heartbeat_timeout_s = self._settings.supervisor.heartbeat_timeout_s
        self._inquest.hold(death, now_s, heartbeat_timeout_s=heartbeat_timeout_s)
        self._park_idle(now_s)
        self._notices.tell_ready()
        self._tell_health()

    def _park_idle(self, now_s: float) -> None:
        """Leave the share of a worker that dies again and again to the others, if there are any: else it waits."""
        if not any(slot.is_ready for slot in self._workers()):
            return
        for slot in self._workers():
            waits_long = slot.pid is None and slot.start_at_s - now_s >= _PARK_FROM_S
            if waits_long and slot.deaths_in_a_row >= _PARK_AFTER_DEATHS:
                self._park(slot)

    def _park(self, slot: Slot) -> None:
        """Unless another worker has the same socket."""
        shares = any(other.pid for other in self._workers() if other.number == slot.number)
        if slot.listener is not None and not shares:
            sockets.park(slot.listener)

    def _clear_away(self, slot: Slot, pid: int) -> None:
        """Keep the counts of a dead process, and remove what would make it look alive."""
        from gateway import metric_files

        try:
            metric_files.fold(self._around.boot.metrics_dir, pid)
        except (OSError, ValueError) as error:
            _log.warning("metrics of the dead %s: %s", slot.name, error, extra={"pid": pid})
        if slot.role == "worker":
            with contextlib.suppress(OSError):  # on a disk that cannot be written it stays, and soon shows its age
                (self._around.boot.status_dir / f"{slot.name}-{pid}.json").unlink()

    # -- the end -------------------------------------------------------------------------------------

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP and not self._is_terminal_gone():
                if not self._stop_signals:
                    self._restart_workers()
            elif number != signal.SIGCHLD:  # that one only wakes the loop, and the next step reaps
                self._stop(signal.Signals(number))

    def _is_terminal_gone(self) -> bool:
        """Whether there was one: then its end is the reason of a SIGHUP, and nobody asks for a restart."""
        return self._had_terminal and not wakeup.has_terminal()

    def _restart_workers(self) -> None:
        """Read the settings again, and replace the workers one by one."""
        now_s = self._clock()
        for slot in self._slots:
            if slot.role == "control" and slot.is_ready:
                slot.signal(signal.SIGHUP)  # it reads its certificate again
        if not self._workers():
            self._rolling.refuse("there are none in this gateway", now_s)
            return
        try:
            effective, kept = reload.take_over(self._settings, self._reread())
            preflight.check_certificates(effective, ("serving",))
            preflight.check_tracing(effective)
        except GatewayError as error:
            self._rolling.refuse(str(error), now_s)
            return
        for name in kept:
            _log.warning("setting %s has changed: that needs a restart of the whole gateway", name)
        self._settings = effective
        self._around = dataclasses.replace(self._around, settings=effective)
        self._template.renew(now_s)  # what was installed anew since is imported anew
        self._rolling.begin(self._around, now_s)

    def _on_restart(self, state: str | None) -> None:
        """One more worker was replaced, or the restart has begun or ended."""
        if state in OUTCOMES:
            self._metrics.rolling_restarts.labels(state).inc()
        self._tell_health()
        if not self._stop_signals:
            self._notices.tell_ready()

    def _tell_health(self) -> None:
        for slot in self._slots:
            self._metrics.deaths_in_a_row.labels(slot.name).set(slot.deaths_in_a_row)
        extra, restart, is_stopping = self._rolling.extra, self._rolling.to_json(), self._stop_signals > 0
        self._notices.tell_health(extra, restart, is_stopping=is_stopping, now_s=self._clock())

    def _stop(self, number: signal.Signals) -> None:
        """First signal: workers drain. Second: everybody ends at once. Third: killed."""
        self._stop_signals += 1
        now_s = self._clock()
        if self._stop_signals == 1:
            _log.info("stopping on %s", number.name)
            self._template.end()
            self._close_at_s = now_s + self._settings.server.drain_delay_s
            self._kill_at_s = math.inf
            for slot in self._workers():
                slot.signal(ANNOUNCE if slot.is_ready else signal.SIGTERM)
            self._tell_health()
            return
        self.exit_code = 128 + number
        _log.warning("%s again: %s", number.name, "hurrying" if self._stop_signals == 2 else "killing what is left")
        self._close_at_s = now_s if self._close_at_s < math.inf else math.inf
        for slot in self._everybody():
            slot.signal(HURRY if slot.role == "worker" and slot.is_ready else signal.SIGTERM)
        self._hurry_until_s = now_s + (_HURRY_TIMEOUT_S if self._stop_signals == 2 else 0.0)

    def _close_port(self, now_s: float) -> None:
        """Balancers have had their time to look elsewhere: no more connections are taken, and what has begun ends."""
        self._close_at_s = math.inf
        self._kill_at_s = now_s + self._settings.server.drain_timeout_s + FLUSH_GRACE_S
        for slot in self._workers():
            if slot.listener is not None:
                slot.listener.close()  # our copy would keep taking connections that nobody accepts
            slot.signal(signal.SIGTERM)

    def _step_to_the_end(self, now_s: float) -> None:
        """Workers leave first, so that control and monitor see their last counts and samples."""
        if now_s >= self._close_at_s:
            self._close_port(now_s)
        if not self._closing and not any(slot.pid for slot in self._workers()):
            self._closing, self._close_at_s = True, math.inf
            for slot in self._everybody():
                slot.signal(signal.SIGTERM)
            self._kill_at_s = now_s + (_CLOSE_TIMEOUT_S if self._stop_signals == 1 else _HURRY_TIMEOUT_S)
        self._kill_at_s = min(self._kill_at_s, self._hurry_until_s)
        if now_s >= self._kill_at_s:
            for slot in self._everybody():
                if slot.pid is not None and (self._closing or slot.role == "worker"):
                    _log.error("%s did not stop in time and is killed", slot.name, extra={"pid": slot.pid})
                    slot.signal(signal.SIGKILL)
            self._kill_at_s = self._hurry_until_s = math.inf


def _restart_metrics(slots: list[Slot]) -> SupervisorMetrics:
    # Imported late: prometheus_client looks at PROMETHEUS_MULTIPROC_DIR when it is imported, and run() sets that.
    from gateway import metrics

    counts = metrics.SupervisorMetrics(metrics.process_registry())
    for slot in slots:
        counts.restarts.labels(slot.role)  # so that there is a zero before the first restart
    for outcome in OUTCOMES:
        counts.rolling_restarts.labels(outcome)
    return counts
