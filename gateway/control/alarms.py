"""What nobody did, but somebody must know: found by looking, once a second, and put into the audit trail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.errors import StoreUnavailable
from gateway.flags.audit import SYSTEM
from gateway.flags.store import FlagStore, Note, RecordWrite

_log = logging.getLogger(__name__)

KIND = "alarm"
LOOK_S = 1.0
MAX_REASON_CHARACTERS = 1000


class Check(Protocol):
    """Something that is looked at. May raise StoreUnavailable, and is then asked again a second later."""

    def look(self) -> None:
        """One look; blocks on the disk."""
        ...


class Said:
    """What was said under one name: a record, written with the audit rows that say it.

    So nothing is said twice after a restart, and nothing is held to be said that was not. Methods block, and raise
    StoreUnavailable.
    """

    def __init__(self, store: FlagStore, name: str) -> None:
        self._store = store
        self._name = name

    def read(self) -> dict[str, Any]:
        """As last written; empty if nothing was ever said."""
        record = self._store.record(KIND, self._name)
        return {} if record is None else dict(record.body)

    def write(self, body: Mapping[str, Any], notes: Sequence[Note] = (), reason: str = "") -> None:
        """Say *notes* and keep *body*."""
        self._store.commit(
            author=SYSTEM,
            verb=KIND,
            reason=reason[:MAX_REASON_CHARACTERS],
            records=[RecordWrite(KIND, self._name, dict(body) or None)],
            notes=notes,
        )


class Alarms:
    """Looks at all that can go wrong, one check after the other."""

    def __init__(self, *checks: Check) -> None:
        self._checks = checks

    async def run(self) -> None:
        """For ever; the checks look in a thread."""
        troubles: dict[int, str] = {}
        while True:
            for number, check in enumerate(self._checks):
                try:
                    await asyncio.to_thread(check.look)
                    troubles.pop(number, None)
                except StoreUnavailable as error:
                    if troubles.get(number) != str(error):  # said once, not each second
                        _log.error("an alarm may be late", extra={"check": type(check).__name__, "why": str(error)})
                    troubles[number] = str(error)
            await asyncio.sleep(LOOK_S)
