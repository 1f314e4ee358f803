"""Why a worker died: versions in flight at its death are noted, and quarantined at the second one."""

from __future__ import annotations

import logging
import signal
from datetime import UTC, datetime
from pathlib import Path

from gateway import quarantine
from gateway.errors import QuarantineUnavailable
from gateway.marks import ON_LOOP
from gateway.quarantine import Quarantined
from gateway.slots import Death
from gateway.suspects import WINDOW_S, Suspects, Verdict

_log = logging.getLogger(__name__)


class Inquest:
    """All deaths of the workers of one boot. Used by the supervisor's thread alone."""

    def __init__(self, quarantine_path: Path) -> None:
        self._quarantine_path = quarantine_path
        self._suspects = Suspects()

    def suspects(self, now_s: float) -> frozenset[tuple[str, str]]:
        """Model and version of all that was in flight when a worker died lately."""
        return self._suspects.names(now_s)

    def hold(self, death: Death, now_s: float, *, heartbeat_timeout_s: float) -> None:
        """Quarantine what killed a worker for the second time, before its replacement is started."""
        if not death.is_crash:
            return
        if death.was_hung:  # a run in a thread cannot hold up the signs of life
            silent_s = heartbeat_timeout_s
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
            quarantine.add(self._quarantine_path, [Quarantined(model, version, digest, seen, ts)])
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
