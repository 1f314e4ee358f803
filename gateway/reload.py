"""Which settings a restart of the workers takes over from a settings file that has changed, and which it cannot."""

from __future__ import annotations

from typing import Any

from gateway import settings
from gateway.settings import Settings

# What the workers and their supervisor read when a worker starts: whole sections, or keys.
_TAKEN_OVER = frozenset({"server", "limits", "batching", "cache", "sampling", "shadow", "supervisor", "log", "tracing"})
_TAKEN_OVER_KEYS = frozenset({"flags.poll_s", "labels.max_body_bytes", "labels.max_items", "labels.max_queue_bytes"})
# The exceptions: bound sockets, and what the monitor reads too, which is not restarted.
_KEPT = frozenset(
    {
        *("server.host", "server.port", "server.workers"),
        *("sampling.keep_s", "sampling.max_log_bytes", "sampling.redact"),
    }
)


def take_over(before: Settings, after: Settings) -> tuple[Settings, list[str]]:
    """The settings for workers that are started from now on.

    Returns *after*, with those of *before* where only a restart of the whole gateway can change them, and the names of
    these. Raises InvalidSetting if the mixture makes no sense.
    """
    old, new = settings.to_plain(before), settings.to_plain(after)
    needs_restart = [
        f"{section}.{key}"
        for section, keys in new.items()
        for key, value in keys.items()
        if value != old[section][key] and not _is_taken_over(section, key, old, new)
    ]
    for name in needs_restart:
        section, key = name.split(".")
        new[section][key] = old[section][key]
    return settings.from_plain(new), needs_restart


def _is_taken_over(section: str, key: str, old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> bool:
    name = f"{section}.{key}"
    if name in ("server.tls_certificate", "server.tls_key"):  # one port cannot speak TLS and not
        return bool(old[section][key]) == bool(new[section][key])
    if name == "server.api_keys" and str(old["flags"]["store"]).startswith(settings.SHARED_STORES):
        return False  # the follower, which copies the keys from the database, is not restarted
    return name in _TAKEN_OVER_KEYS or (section in _TAKEN_OVER and name not in _KEPT)
