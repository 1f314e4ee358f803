"""A rolling restart: each worker is replaced by a new one that is ready, one at a time, before it leaves.

The new worker gets the same listening socket, so that none is closed and no connection is lost between the two.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.children import FLUSH_GRACE_S
from gateway.slots import Death, Slot, Surroundings

# How a restart ends.
OUTCOMES = ("done", "stopped", "refused")
# How often it is looked whether a new worker that is ready serves already.
_LOOK_S = 0.02

_log = logging.getLogger(__name__)


class Rolling:
    """The restarts of one boot, one after the other. Used by the supervisor's thread alone.

    slots: the supervisor's own list; a slot is replaced in it when its new worker takes over. start: fills a slot.
    tell: called after each change of what `to_json` says; it gets the outcome of a restart that ended.
    """

    def __init__(
        self,
        slots: list[Slot],
        status_dir: Path,
        *,
        start: Callable[[Slot, float], None],
        tell: Callable[[str | None], None],
    ) -> None:
        self._slots = slots
        self._status_dir = status_dir
        self._start = start
        self._tell = tell
        self._around: Surroundings | None = None
        self._generation = 0
        self._successor: Slot | None = None
        self._retiring: list[Slot] = []
        self._restart: dict[str, Any] = {"number": 0, "state": "none", "why": "", "replaced": 0, "at": 0.0}

    @property
    def extra(self) -> list[Slot]:
        """Workers that run beside those in the slots: who comes, and who leaves."""
        return [*([] if self._successor is None else [self._successor]), *self._retiring]

    def to_json(self) -> Mapping[str, Any]:
        """The last restart. state: none, running, done, stopped or refused; why: of the last two."""
        return self._restart

    def refuse(self, why: str, now_s: float) -> None:
        """Note a restart that was asked for and cannot begin. One that goes on ends here: nobody would hear of it."""
        _log.error("the workers are not restarted: %s", why)
        self._dismiss(now_s)
        self._note(number=self._restart["number"] + 1, state="refused", why=why)

    def begin(self, around: Surroundings, now_s: float) -> None:
        """Replace all workers by ones with the settings of *around*; one that is being replaced begins anew."""
        _log.info("restarting the workers, one at a time")
        self._around = around
        self._generation += 1
        self._dismiss(now_s)  # its settings are old
        self._note(number=self._restart["number"] + 1, state="running", why="", replaced=0)

    def step(self, now_s: float) -> None:
        """Do what is due. Nothing once the gateway stops."""
        if self._restart["state"] != "running" or self._around is None:
            return
        if self._successor is None:
            if not self._retiring:
                self._begin_next(self._around, now_s)
        elif self._successor.is_ready:
            self._take_over(self._successor, now_s)

    def due_s(self, now_s: float) -> float:
        """When `step` has something to do that no event tells of."""
        return now_s + _LOOK_S if self._successor is not None and self._successor.is_ready else math.inf

    def bury(self, slot: Slot, death: Death) -> bool:
        """Take note of a death. Returns False if it was of none of ours: whoever is in a slot."""
        if slot in self._retiring:
            self._retiring.remove(slot)
            log = _log.info if death.returncode in (0, -signal.SIGTERM) else _log.error
            log("the old %s has left: %s", slot.name, death, extra={"pid": death.pid})
            self._tell(None)
            return True
        if slot is not self._successor:
            return False
        self._successor = None
        if slot.generation == self._generation and self._restart["state"] == "running":
            self._stop(slot, f"it was not ready within {death.lived_s:.0f} s" if slot.was_late else str(death))
        self._tell(None)
        return True

    def _begin_next(self, around: Surroundings, now_s: float) -> None:
        old = next((slot for slot in self._slots if slot.role == "worker" and slot.generation < self._generation), None)
        if old is None:
            _log.info("all workers were restarted", extra={"workers": self._restart["replaced"]})
            self._note(state="done")
            return
        new = Slot("worker", old.number, old.listener, around, generation=self._generation)
        new.kill_at_s = now_s + around.settings.supervisor.restart_timeout_s
        self._successor = new
        self._start(new, now_s)
        self._tell(None)
        if new.pid is None:
            self._successor = None
            self._stop(new, "no process could be started")

    def _take_over(self, new: Slot, now_s: float) -> None:
        """Let *new* have the slot, if it serves, and send the one before away."""
        index = next(i for i, slot in enumerate(self._slots) if slot.role == "worker" and slot.number == new.number)
        old = self._slots[index]
        found = self._status(new)
        if found.get("phase") != "serving":
            return
        if lost := _lost(self._status(old), found):
            self._stop(new, lost)
            self._dismiss(now_s)
            return
        new.kill_at_s = math.inf
        self._slots[index], self._successor = new, None
        if old.pid is not None:
            self._retire(old, now_s)
        _log.info("%s was replaced", new.name, extra={"old_pid": old.pid, "pid": new.pid})
        self._note(replaced=self._restart["replaced"] + 1)

    def _dismiss(self, now_s: float) -> None:
        """Send a new worker away that shall not take over, if there is one: it may have taken connections already."""
        slot, self._successor = self._successor, None
        if slot is not None:
            self._retire(slot, now_s)

    def _retire(self, slot: Slot, now_s: float) -> None:
        slot.signal(signal.SIGTERM)
        slot.kill_at_s = now_s + slot.around.settings.server.drain_timeout_s + FLUSH_GRACE_S
        self._retiring.append(slot)

    def _status(self, slot: Slot) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = json.loads((self._status_dir / slot.status_name).read_bytes())
            return found
        except (OSError, ValueError):
            return {}

    def _stop(self, slot: Slot, why: str) -> None:
        _log.error("the restart was stopped, the old workers serve on: the new %s: %s", slot.name, why)
        self._note(state="stopped", why=f"the new {slot.name}: {why}")

    def _note(self, **changes: Any) -> None:
        self._restart = {**self._restart, **changes, "at": round(time.time(), 3)}
        self._tell(changes.get("state"))


def _lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What the old worker answers for and the new one could not load; empty if nothing."""
    for model, found in old.get("models", {}).items():
        for version, before in found.get("versions", {}).items():
            after = new.get("models", {}).get(model, {}).get("versions", {}).get(version, {})
            if before.get("state") == "warm" and after.get("state") == "failed":
                return f"{model}/{version} does not load any more: {after.get('reason')}"
    return ""
