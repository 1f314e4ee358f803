"""The status documents of this host's workers, read to be pushed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """One document as a worker wrote it. written_at: unix seconds of this host."""

    slot: int
    document: str
    written_at: float


def stamps(status_dir: Path) -> Mapping[str, int]:
    """What changes when a document is written, comes or goes: name -> time of writing in nanoseconds."""
    found: dict[str, int] = {}
    for path in status_dir.glob("worker-*.json"):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:  # its worker has just died
            continue
    return found


def read(status_dir: Path) -> list[LocalStatus]:
    """One document per slot: of who serves, where one worker replaces another.

    One that cannot be read is left out: its worker will write another.
    """
    found: dict[int, LocalStatus] = {}
    for path in sorted(status_dir.glob("worker-*.json")):
        try:
            raw = path.read_bytes()
            document = orjson.loads(raw)
            slot = int(document["slot"])
            if slot not in found or document.get("phase") == "serving":
                found[slot] = LocalStatus(slot, raw.decode(), float(document["written_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return list(found.values())
