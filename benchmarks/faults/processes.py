"""kill -9 and SIGSTOP of workers, control, monitor and supervisor, while clients predict and somebody edits flags."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from speed import machine

from faults import sample_log, stage
from faults.edits import Editor
from faults.load import CLIENTS, Load
from faults.trial import BACK_WITHIN_S, Fault, Trial
from tests.live import ChildRole, LiveGateway, SettingsTable

ROLES: tuple[ChildRole, ...] = ("worker", "control", "monitor")
WORKERS = 2
_VICTIMS: tuple[tuple[ChildRole, int], ...] = (("worker", 0), ("worker", 1), ("control", 0), ("monitor", 0))
_SUPERVISOR_SHARE = 0.1
# A request that the killed process had, and one that nobody listened for.
CUT = frozenset({"cut"})
DOWN = frozenset({"cut", "refused"})


@dataclass(frozen=True, slots=True)
class Scene:
    """A running gateway, those who ask it, and who edits its flags."""

    live: LiveGateway
    load: Load
    editor: Editor


@contextlib.contextmanager
def scene(
    trial: Trial,
    settings: SettingsTable,
    *,
    harmless: frozenset[str] = frozenset(),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Scene]:
    """Under load and edits until it is left; then no change may be lost, and nothing but *harmless* may have failed."""
    with stage.gateway(trial, stage.iris, settings, workers=WORKERS, environment=environment) as live:
        with Editor(live) as editor, Load(live.data_url, stage.ask_iris, seed=trial.seed) as load:
            load.wait_answered(20)
            editor.wait_acknowledged(2)
            yield Scene(live, load, editor)
            load.wait_answered(20)
            editor.wait_acknowledged(2)
        editor.check(trial)
        stage.none_failed(trial, load, but=harmless)


def _strike(trial: Trial, role: ChildRole, number: signal.Signals) -> None:
    """Send a signal to a process of *role* in each round, and wait for another one that does what that one did."""
    with scene(trial, {}, harmless=CUT if role == "worker" else frozenset()) as on:
        for _turn in trial.turns():
            time.sleep(trial.draw.uniform(0.1, 0.6))  # the moment of the signal, drawn by the seed
            slot = trial.draw.randrange(WORKERS) if role == "worker" else 0
            old_pid = on.live.child_pids(role)[slot]
            os.kill(old_pid, number)
            began_s = time.monotonic()
            on.live.wait_replaced(role, slot, old_pid, timeout_s=60.0)
            if role == "control":
                on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)
            on.load.wait_answered(10)
            on.editor.wait_acknowledged()
    cut = len(on.load.failures)
    trial.must(cut <= trial.rounds * CLIENTS, f"{cut} requests were cut, more than a worker can have been asked")
    trial.must_be_back(BACK_WITHIN_S)  # the model is tiny: to load it takes no time that counts


def worker_killed(trial: Trial) -> None:
    """kill -9 of a worker: what it was just asked is cut, all else is answered."""
    _strike(trial, "worker", signal.SIGKILL)


def control_killed(trial: Trial) -> None:
    """kill -9 of control: no prediction notices, no acknowledged change is lost."""
    _strike(trial, "control", signal.SIGKILL)


def worker_stopped(trial: Trial) -> None:
    """SIGSTOP of a worker: it is seen to stand still, and replaced."""
    _strike(trial, "worker", signal.SIGSTOP)


def control_stopped(trial: Trial) -> None:
    """SIGSTOP of control: as if it had been killed, later."""
    _strike(trial, "control", signal.SIGSTOP)


def monitor_stopped(trial: Trial) -> None:
    """SIGSTOP of the monitor: nobody waits for it."""
    _strike(trial, "monitor", signal.SIGSTOP)


def stopped_for_a_moment(trial: Trial) -> None:
    """SIGSTOP and SIGCONT of whoever is drawn, too soon to be replaced: all wait, nobody is cut."""
    with scene(trial, {}) as on:
        before = {role: on.live.child_pids(role) for role in ROLES}
        for _turn in trial.turns():
            pids = [pid for slots in before.values() for pid in slots.values()]
            pid = trial.draw.choice(pids)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(trial.draw.uniform(0.1, 0.4))  # how long it stands still, drawn by the seed
            os.kill(pid, signal.SIGCONT)
            began_s = time.monotonic()
            on.load.wait_answered(2 * CLIENTS)
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)
        after = {role: on.live.child_pids(role) for role in ROLES}
        trial.must(after == before, "a process was replaced that stood still for a moment")


def anyone_killed(trial: Trial) -> None:
    """kill -9 of whoever is drawn, the supervisor too, with the whole log, the alarms and the edits looked at."""
    with sample_log.watched_log(trial, seen_s=sample_log.SEEN_S + 10.0) as watched:
        with Editor(watched.live) as editor:
            editor.wait_acknowledged()
            for turn in trial.turns():
                watched.between(turn)
                time.sleep(trial.draw.uniform(0.0, 1.0))  # the moment of the kill, drawn by the seed
                if trial.draw.random() < _SUPERVISOR_SHARE:
                    _kill_supervisor(trial, watched.live, watched.load)
                else:
                    role, slot = trial.draw.choice(_VICTIMS)
                    stage.killed(trial, watched.live, role, slot)
            editor.wait_acknowledged()
        editor.check(trial)
    others = [failure for failure in watched.load.failures if failure.how not in DOWN]
    trial.must(not others, f"requests failed: {watched.load.kinds()}")


def _kill_supervisor(trial: Trial, live: LiveGateway, load: Load) -> None:
    """kill -9 of the supervisor: its children leave by themselves, and a new one is started as systemd would."""
    family = set(machine.tree(live.pid))
    live.signal(signal.SIGKILL)
    live.wait_stopped(exit_code=-signal.SIGKILL)
    began_s = time.monotonic()
    live.start()
    load.url = live.data_url
    trial.recovered_s.append(time.monotonic() - began_s)
    stage.end(trial, family)


FAULTS = (
    Fault("kill -9 of a worker", 30, worker_killed),
    Fault("kill -9 of control", 30, control_killed),
    Fault("SIGSTOP of a worker", 8, worker_stopped),
    Fault("SIGSTOP of control", 8, control_stopped),
    Fault("SIGSTOP of the monitor", 8, monitor_stopped),
    Fault("SIGSTOP and SIGCONT of whoever is drawn", 20, stopped_for_a_moment),
    Fault("kill -9 over the whole system, whoever is drawn", 200, anyone_killed),
)
