"""A steady stream of numbered changes of a flag, and whether the audit trail has each that was acknowledged, once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

from faults import stage
from faults.trial import Trial
from tests.live import LiveGateway, eventually

PAUSE_S = 0.2
# No answer by then: the edit has failed, and may be there or not.
PATIENCE_S = 20.0


class Editor:
    """A context manager: a thread changes one flag again and again, under numbers of its own. Nothing is sent twice.

    A change is a number in the flag's metadata and its reason in the trail, so that all that ever came can be told
    apart. key: a flag that is there. refused: changes without an acknowledgement, by status or kind of error.
    """

    def __init__(self, live: LiveGateway, key: str = "iris.route", *, pause_s: float = PAUSE_S) -> None:
        self._live = live
        self._key = key
        self._pause_s = pause_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="editor")
        self.requests = 0
        self.acknowledged: list[int] = []
        self.refused: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def wait_acknowledged(self, more: int = 1, *, timeout_s: float = 60.0) -> None:
        """Wait until so many more changes were acknowledged."""
        enough = len(self.acknowledged) + more
        eventually(lambda: len(self.acknowledged) >= enough, f"{more} changes are acknowledged", timeout_s=timeout_s)

    def wait_refused(self, status: int, *, timeout_s: float = 60.0) -> None:
        """Wait until one more was refused with this status."""
        before = self.refused[str(status)]
        eventually(lambda: self.refused[str(status)] > before, f"changes get {status}", timeout_s=timeout_s)

    def _run(self) -> None:
        while not self._is_over.wait(self._pause_s):
            number, self.requests = self.requests, self.requests + 1
            try:
                self._edit(number)
            except (httpx.HTTPError, OSError) as error:
                self.refused[type(error).__name__] += 1

    def _edit(self, number: int) -> None:
        headers = {
            "authorization": f"Bearer {self._live.admin_token}",
            "content-type": "application/merge-patch+json",
            "if-match": "*",
            "x-change-reason": _reason(number),
        }
        patch = json.dumps({"metadata": {"edit": number}})
        address = f"{self._live.control_url}/admin/v1/flags/{self._key}"
        reply = httpx.patch(address, content=patch, headers=headers, timeout=PATIENCE_S)
        if reply.status_code == 200:
            self.acknowledged.append(number)
        else:
            self.refused[str(reply.status_code)] += 1

    def check(self, trial: Trial) -> None:
        """When it is over and control is up: each acknowledged change is there, none twice, none undone."""
        trial.requests += self.requests
        trial.failed += self.refused.total()
        rows = stage.trail(self._live)
        found = Counter(row["reason"] for row in rows if row["reason"].startswith(_reason("")))
        lost = [number for number in self.acknowledged if not found[_reason(number)]]
        twice = [reason for reason, count in found.items() if count > 1]
        trial.lost += len(lost) + len(twice)
        trial.must(not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged changes are not in the trail")
        trial.must(not twice, f"{len(twice)} changes are in the trail more than once")
        flag = self._live.control.get(f"/admin/v1/flags/{self._key}").json()
        newest = max(self.acknowledged, default=-1)
        trial.must(flag["metadata"].get("edit", -1) >= newest, f"the flag is older than change {newest}")
        verdict = self._live.control.get("/admin/v1/audit:verify").json()
        trial.must(verdict["intact"] is True, f"the audit trail is not intact: {verdict}")


def _reason(number: int | str) -> str:
    return f"chaos edit {number}"
