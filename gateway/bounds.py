"""Which values a setting may have, where not every value of its type makes sense."""

from __future__ import annotations

from collections.abc import Mapping

# Smallest and largest value, where not every value of the type makes sense.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "server.port": (0, 65535),
    "server.workers": (1, 256),
    "server.keep_alive_s": (1, 86_400),
    "server.request_timeout_s": (0.1, 3600),
    "server.max_header_bytes": (256, 2**20),
    "server.drain_timeout_s": (0, 3600),
    "control.port": (0, 65535),
    "limits.max_body_bytes": (1, 2**31),
    "limits.max_in_flight": (1, 1_000_000),
    "limits.deadline_s": (0.001, 3600),
    "limits.max_deadline_s": (0.001, 3600),
    "batching.max_batch_rows": (1, 1_000_000),
    "batching.max_queue_rows": (1, 100_000_000),
    "batching.inline_budget_s": (0, 1),
    "batching.run_threads": (1, 256),
    "batching.intra_op_threads": (1, 256),
    "batching.load_timeout_s": (0.1, 86_400),
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
    "supervisor.heartbeat_timeout_s": (1, 86_400),
    "supervisor.backoff_min_s": (0.001, 3600),
    "supervisor.backoff_max_s": (0.001, 3600),
    "supervisor.stable_after_s": (0, 86_400),
    "audit.checkpoint_rows": (1, 1_000_000),
    "audit.checkpoint_s": (1, 30 * 86_400),
    "approvals.required": (1, 5),
    "approvals.expires_s": (1, 30 * 86_400),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "log.level": ("debug", "info", "warning", "error", "critical"),
    "server.door": ("fast", "asgi"),
}
