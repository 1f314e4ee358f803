"""What the workers say of themselves: their status documents, and which versions are warm in every live one.

Workers of this host write files. With a shared store, those of all hosts are in its database; see `with_hosts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.flags.store import HostStatus

LIVE_WITHIN_S = 3.0  # workers write at least every second
WARM = "warm"
FAILED = "failed"
QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One status document as it was written, and how old it is. host: empty for a worker of this state directory."""

    document: Mapping[str, Any]
    age_s: float
    host: str = ""

    @property
    def live(self) -> bool:
        return self.age_s <= LIVE_WITHIN_S

    @property
    def slot(self) -> int:
        return int(self.document["slot"])

    @property
    def name(self) -> str:
        """How people are told of it: ``0``, or ``host-a/0``."""
        return f"{self.host}/{self.slot}" if self.host else str(self.slot)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Who it is, wherever its document was read."""
        return self.document.get("boot"), self.document.get("pid")

    def version(self, model: str, version: str) -> tuple[str, str]:
        """State and reason of one version in this worker; ``unknown`` where it does not mention it."""
        models = self.document.get("models", {})
        found = models.get(model, {}).get("versions", {}).get(version)
        if found is None:
            return "unknown", "no route names it, or the worker has not read that route yet"
        return str(found.get("state", "unknown")), str(found.get("reason") or "")

    def to_json(self) -> dict[str, Any]:
        host = {"host": self.host} if self.host else {}
        return {**host, **self.document, "age_s": round(self.age_s, 3), "live": self.live}


def read_workers(run_dir: Path, now_s: float) -> list[WorkerStatus]:
    """The workers of this boot, and the live ones of others that share the state directory, by boot and slot.

    now_s: unix seconds. Blocks on the disk. A document that cannot be read is left out: its worker will write another.
    """
    found: list[WorkerStatus] = []
    for path in sorted(run_dir.parent.glob("*/status/worker-*.json")):
        status = _read(path, now_s)
        if status is not None and (status.live or path.parent.parent == run_dir):
            found.append(status)
    return found


def with_hosts(here: Iterable[WorkerStatus], hosts: Iterable[HostStatus]) -> list[WorkerStatus]:
    """The workers of all hosts; one that is in both lists is told of once, as the younger document says."""
    found: dict[tuple[Any, ...], WorkerStatus] = {}
    for each in hosts:
        try:
            status = WorkerStatus(each.document, each.age_s, each.host)
            found[status.slot, status.identity] = status
        except (KeyError, TypeError, ValueError, AttributeError):  # of another version of the gateway
            continue
    for status in here:
        pushed = found.get((status.slot, status.identity))
        if pushed is None or status.age_s < pushed.age_s:
            host = pushed.host if pushed is not None else status.host
            found[status.slot, status.identity] = WorkerStatus(status.document, status.age_s, host)
    return sorted(found.values(), key=lambda status: (status.host, str(status.document.get("boot")), status.slot))


def not_warm(workers: Iterable[WorkerStatus], model: str, versions: Iterable[str]) -> list[dict[str, Any]]:
    """Where a version is not warm: one entry per live worker and version, with state and reason."""
    wanted = sorted(versions)
    blocking = []
    for worker in workers:
        for version in wanted if worker.live else ():
            state, reason = worker.version(model, version)
            if state != WARM:
                host = {"host": worker.host} if worker.host else {}
                blocking.append({**host, "worker": worker.slot, "version": version, "state": state, "reason": reason})
    return blocking


def _read(path: Path, now_s: float) -> WorkerStatus | None:
    try:
        document = orjson.loads(path.read_bytes())
        return WorkerStatus(document, age_s=max(0.0, now_s - float(document["written_at"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
