"""Which values a setting may have, where not every value of its type makes sense, and how they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.errors import InvalidSetting
from gateway.labelling import parse_detectors
from gateway.networks import parse_networks
from gateway.redaction import parse_setting

# Smallest and largest value, where not every value of the type makes sense.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "server.port": (0, 65535),
    "server.workers": (1, 256),
    "server.keep_alive_s": (1, 86_400),
    "server.request_timeout_s": (0.1, 3600),
    "server.write_timeout_s": (0.1, 3600),
    "server.max_connections": (1, 1_000_000),
    "server.max_header_bytes": (256, 2**20),
    "server.compress_min_bytes": (0, 2**31),
    "server.drain_delay_s": (0, 3600),
    "server.max_in_flight_bytes": (1024, 2**40),
    "server.drain_timeout_s": (0, 3600),
    "control.port": (0, 65535),
    "control.keep_alive_s": (1, 86_400),
    "control.request_timeout_s": (0.1, 3600),
    "control.write_timeout_s": (0.1, 3600),
    "control.max_connections": (1, 1_000_000),
    "control.max_header_bytes": (256, 2**20),
    "control.retrain_cool_down_s": (0, 365 * 86_400),
    "limits.max_body_bytes": (1, 2**31),
    "limits.max_in_flight": (1, 1_000_000),
    "limits.deadline_s": (0.001, 3600),
    "limits.max_deadline_s": (0.001, 3600),
    "batching.max_batch_rows": (1, 1_000_000),
    "batching.max_queue_rows": (1, 100_000_000),
    "batching.target_wait_s": (0.0001, 60),
    "batching.inline_budget_s": (0, 1),
    "batching.run_threads": (1, 256),
    "batching.intra_op_threads": (1, 256),
    "batching.load_timeout_s": (0.1, 86_400),
    "batching.trial_memory_bytes": (0, 2**50),
    "cache.max_bytes": (0, 2**40),
    "cache.ttl_s": (0.001, 10**9),
    "flags.poll_s": (0.001, 10),
    "sampling.rate": (0, 1),
    "sampling.max_queue_records": (1, 10_000_000),
    "sampling.max_queue_bytes": (1, 2**40),
    "sampling.max_rows_per_request": (1, 1_000_000),
    "sampling.segment_max_bytes": (4096, 2**40),
    "sampling.segment_max_age_s": (0.1, 86_400),
    "sampling.sync_s": (0.001, 3600),
    "sampling.min_free_bytes": (0, 2**50),
    "sampling.keep_s": (0, 100 * 365 * 86_400),
    "sampling.max_log_bytes": (0, 2**50),
    "sampling.max_by_rules_per_s": (0, 1_000_000),
    "shadow.max_queue_copies": (1, 10_000_000),
    "shadow.max_queue_bytes": (1, 2**40),
    "shadow.max_in_flight": (0, 1_000_000),
    "shadow.max_wait_s": (0.1, 3600),
    "shadow.run_timeout_s": (0.001, 3600),
    "monitor.poll_s": (0.01, 3600),
    "monitor.window_rows": (10, 10_000_000),
    "monitor.min_window_rows": (2, 10_000_000),
    "monitor.max_false_discovery_rate": (1e-6, 0.5),
    "monitor.min_effect": (0, 1),
    "monitor.compact_after_s": (0, 30 * 86_400),
    "monitor.window_s": (0, 30 * 86_400),
    "monitor.alarm_windows": (1, 32),
    "monitor.alarm_drifted_windows": (1, 32),
    "monitor.history_hours": (1, 31 * 24),
    "monitor.history_days": (1, 3660),
    "monitor.history_max_bytes": (2**20, 2**40),
    "supervisor.heartbeat_timeout_s": (1, 86_400),
    "supervisor.backoff_min_s": (0.001, 3600),
    "supervisor.backoff_max_s": (0.001, 3600),
    "supervisor.restart_timeout_s": (1, 86_400),
    "supervisor.stable_after_s": (0, 86_400),
    "audit.checkpoint_rows": (1, 1_000_000),
    "audit.checkpoint_s": (1, 30 * 86_400),
    "approvals.required": (1, 5),
    "approvals.expires_s": (1, 30 * 86_400),
    "tracing.sample_ratio": (0, 1),
    "tracing.max_queue_traces": (1, 1_000_000),
    "labels.max_body_bytes": (1024, 2**26),
    "labels.max_items": (1, 1_000_000),
    "labels.max_queue_bytes": (1024, 2**32),
    "labels.wait_s": (1, 366 * 86_400),
    "labels.max_waiting_rows": (100, 10_000_000),
    "labels.recent_rows": (10, 1_000_000),
    "labels.window_rows": (10, 1_000_000),
    "labels.reference_windows": (2, 1000),
    "labels.detectors_cool_down_s": (0, 366 * 86_400),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "log.level": ("debug", "info", "warning", "error", "critical"),
    "batching.adaptive": ("off", "on"),
    "server.door": ("fast", "asgi"),
    "server.api_keys": ("off", "required"),
    "labels.detectors_tell": ("report", "alarm"),
}
# A name of a header, as RFC 9110, 5.1 has it.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _check_header_name(text: str) -> None:
    if text and _HEADER_NAME.fullmatch(text) is None:
        raise ValueError(f"expected the name of a header, got {text!r}")


# Texts that say something: each is read once by what reads it, so that a mistake is told at the start.
READERS: Mapping[str, Callable[[str], object]] = {
    "limits.client_header": _check_header_name,
    "sampling.redact": parse_setting,
    "labels.detectors": parse_detectors,
    "webhooks.allow_networks": parse_networks,
}


def convert(name: str, kind: type, value: Any, origin: str) -> Any:
    """*value* as *kind*; text is read as a number where one is wanted, since the environment holds only text.

    Raises InvalidSetting.
    """
    try:
        if kind is Path:
            converted: Any = Path(os.path.expanduser(str(value)))
        elif kind is str:
            converted = value if isinstance(value, str) else _wrong()
        elif isinstance(value, bool) or not isinstance(value, int | float | str):
            converted = _wrong()
        else:
            converted = kind(value)
            if converted != float(value):  # 1.5 workers
                _wrong()
    except (ValueError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a number", str: "text"}.get(kind, kind.__name__)
        raise InvalidSetting(f"setting {name!r} ({origin}): expected {wanted}, got {value!r}") from error
    low, high = BOUNDS.get(name, (-float("inf"), float("inf")))
    if kind in (int, float) and not low <= converted <= high:
        raise InvalidSetting(f"setting {name!r} ({origin}): expected {low:g} to {high:g}, got {value!r}")
    choices = CHOICES.get(name)
    if choices is not None and converted not in choices:
        raise InvalidSetting(f"setting {name!r} ({origin}): expected one of {', '.join(choices)}, got {value!r}")
    if name in READERS:
        try:
            READERS[name](converted)
        except ValueError as error:
            raise InvalidSetting(f"setting {name!r}: {error}") from error
    return converted


def _wrong() -> Any:
    raise ValueError
