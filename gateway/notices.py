"""What the supervisor tells others: the ready file, the greeting, and how its children are."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway import __version__, health, sockets
from gateway.boot import Boot
from gateway.settings import Settings
from gateway.slots import Slot

_log = logging.getLogger(__name__)


class Notices:
    """The notices of one boot. Used by the supervisor's thread alone.

    slots: the supervisor's own list, as it is at each notice. ready_file: None if nobody wants one.
    """

    def __init__(self, slots: list[Slot], settings: Settings, boot: Boot, ready_file: Path | None) -> None:
        self._slots = slots
        self._settings = settings
        self._boot = boot
        self._ready_file = ready_file
        self._was_ready = False  # all slots were, at some time

    def tell_ready(self) -> None:
        """Once every slot was ready: write the ready file, and from then on keep it true."""
        if not self._was_ready:
            if not all(slot.is_ready for slot in self._slots):
                return
            self._was_ready = True
            self._greet()
        if self._ready_file is not None:
            try:
                write_whole(self._ready_file, json.dumps(self._addresses(), indent=1) + "\n")
            except OSError as error:  # a full disk is no reason to stop serving
                _log.error("cannot write the ready file %s: %s", self._ready_file, error.strerror)

    def tell_health(self, extra: list[Slot], restart: Mapping[str, Any], *, is_stopping: bool, now_s: float) -> None:
        """Write how everybody is. extra: workers beside those in the slots. now_s: of the slots' clock."""

        def starts_at(slot: Slot) -> float | None:
            return None if slot.pid is not None else round(time.time() + slot.start_at_s - now_s, 3)

        document = {
            "pid": os.getpid(),
            "written_at": round(time.time(), 3),
            "is_stopping": is_stopping,
            "restart": restart,
            "children": [
                {
                    "name": slot.name,
                    "pid": slot.pid,
                    "is_ready": slot.is_ready,
                    "deaths_in_a_row": slot.deaths_in_a_row,
                    "is_crash_looping": slot.is_crash_looping,
                    "starts_at": starts_at(slot),
                }
                for slot in [*self._slots, *extra]
            ],
        }
        try:
            write_whole(self._boot.run_dir / health.HEALTH_FILE, json.dumps(document))
        except OSError as error:  # as above
            _log.error("cannot tell how the children are: %s", error.strerror)

    def _addresses(self) -> dict[str, Any]:
        certificates = {
            "worker": self._settings.server.tls_certificate,
            "control": self._settings.control.tls_certificate,
        }

        def address(role: str) -> dict[str, Any] | None:
            listener = next((slot.listener for slot in self._slots if slot.role == role and slot.listener), None)
            if listener is None:
                return None
            host, port = listener.getsockname()[:2]
            url = sockets.url_of(listener, tls=bool(certificates.get(role)))  # the exporter speaks no TLS
            return {"host": host, "port": port, "url": url}

        return {
            "data": address("worker"),
            "control": address("control"),
            "metrics": address("exporter"),
            "pid": os.getpid(),
            "boot": self._boot.name,
            "run_dir": str(self._boot.run_dir.absolute()),
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


def write_whole(path: Path, text: str) -> None:
    """Replace *path* in one step: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
