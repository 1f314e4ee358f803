"""First routes: a model that no flag names yet gets one to its highest version."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.control.changes import Desk
from gateway.errors import RevisionConflict, StoreUnavailable
from gateway.flags.audit import SYSTEM
from gateway.flags.document import ENABLED, Json, route_key
from gateway.models.source import ModelSource

_log = logging.getLogger(__name__)

SCAN_INTERVAL_S = 0.5
# A version whose files changed so recently may still be on its way into the directory.
SETTLED_AFTER_S = 1.0
# At a first start the routes of all models are made together, if their packages settle so soon: a worker is ready once
# all models that it knows of are warm, and must not think so of the first one alone.
WHOLE_WITHIN_S = 5.0


def seed(desk: Desk, versions: Mapping[str, str]) -> None:
    """Give models that have no route their first ones, as one revision: no worker may take a part for the whole.

    versions: by model. Raises StoreUnavailable.
    """
    desk.make_sure_of_recovery()
    routed = desk.document().flags
    wanted: dict[str, Json] = {
        route_key(model): {"state": ENABLED, "variants": {"stable": version}, "defaultVariant": "stable"}
        for model, version in versions.items()
        if route_key(model) not in routed
    }
    if wanted:
        with contextlib.suppress(RevisionConflict):  # another control was faster; the next look shows what is left
            desk.apply(
                wanted,
                based_on=dict.fromkeys(wanted, 0),
                author=SYSTEM,
                verb="flag.seed",
                reason="first route of the model: its highest version",
                lowers=True,  # nobody was served before
            )


class Seeder:
    """Looks through the models directory and hands the desk what has no route yet.

    Versions that appear later are listed, but not served until a flag names them.
    """

    def __init__(self, source: ModelSource, desk: Desk, *, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._desk = desk
        self._clock = clock
        self._stamps: dict[tuple[str, str], Any] = {}
        self._trouble = ""
        self._began_s = clock()

    def scan(self) -> None:
        """One look; blocks on the disk."""
        try:
            models = self._source.versions()
            routed = self._desk.document().flags
            first: dict[str, str] = {}
            for model, versions in models.items():
                # all() would stop at the first unsettled one and not remember the stamps of the others
                if route_key(model) not in routed and False not in [self._is_settled(model, v) for v in versions]:
                    first[model] = versions[-1]
            if not routed and len(first) < len(models) and self._clock() < self._began_s + WHOLE_WITHIN_S:
                return  # a first start: some packages are still on their way in
            seed(self._desk, first)
            self._trouble = ""
        except (StoreUnavailable, OSError) as error:
            if str(error) != self._trouble:  # said once, not twice a second
                _log.error("cannot look for models without a route", extra={"why": str(error)})
            self._trouble = str(error)

    async def run(self) -> None:
        """Scan for ever, in a thread."""
        while True:
            await asyncio.to_thread(self.scan)
            await asyncio.sleep(SCAN_INTERVAL_S)

    def _is_settled(self, model: str, version: str) -> bool:
        """Whether the files of a version are the same as at the last look, or older than copying takes a breath."""
        stamp = self._source.stamp(model, version)
        same = self._stamps.get((model, version)) == stamp
        self._stamps[model, version] = stamp
        newest_s = max((modified_ns for _, modified_ns in filter(None, stamp)), default=0) / 1e9
        return same or self._clock() - newest_s > SETTLED_AFTER_S
