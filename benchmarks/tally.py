"""Counts requests by name and writes the figures as a JSON document that is rewritten while the test runs."""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRITE_EVERY_S = 0.5
PERCENTILES = (50, 90, 95, 99)
# Latencies are kept in buckets that are 1 % wide: Locust itself rounds them to whole milliseconds.
BUCKET_WIDTH = math.log(1.01)
SHORTEST_MS = 0.001
# Requests of the operator, which are no predictions.
READ_FLAG, CHANGE_FLAG = "read flag", "change flag"


class Latencies:
    """Latencies in milliseconds, exact to 1 %."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self._buckets: collections.Counter[int] = collections.Counter()
        self._sum_ms = 0.0
        self._max_ms = 0.0

    def add(self, latency_ms: float, *, failed: bool) -> None:
        self.requests += 1
        self.failures += failed
        self._sum_ms += latency_ms
        self._max_ms = max(self._max_ms, latency_ms)
        self._buckets[round(math.log(max(latency_ms, SHORTEST_MS)) / BUCKET_WIDTH)] += 1

    def figures(self, elapsed_s: float) -> dict[str, Any]:
        """Counts, requests per second, and percentiles; the latter are null without a request."""
        percentiles = {f"p{percent}_ms": self._percentile(percent / 100) for percent in PERCENTILES}
        return {
            "requests": self.requests,
            "failures": self.failures,
            "rps": self.requests / elapsed_s if elapsed_s else 0.0,
            "mean_ms": self._sum_ms / self.requests if self.requests else None,
            **percentiles,
            "max_ms": self._max_ms if self.requests else None,
        }

    def _percentile(self, share: float) -> float | None:
        wanted = share * self.requests
        seen = 0
        for bucket, count in sorted(self._buckets.items()):
            seen += count
            if seen >= wanted:
                return min(math.exp(bucket * BUCKET_WIDTH), self._max_ms)
        return None


class Counts:
    """All requests of one test."""

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._last_s = 0.0
        self._by_name: dict[str, Latencies] = collections.defaultdict(Latencies)
        self._predictions = Latencies()
        self._errors: collections.Counter[tuple[str, str]] = collections.Counter()
        self._examples: dict[str, str] = {}

    def on_request(self, *, name: str, response_time: float | None, exception: object = None, **_: Any) -> None:
        """Locust's request event."""
        now_s = time.monotonic()
        latency_ms = response_time or 0.0
        if self._started_s is None:
            self._started_s = now_s - latency_ms / 1000
        self._last_s = now_s
        failed = exception is not None
        self._by_name[name].add(latency_ms, failed=failed)
        if name not in (READ_FLAG, CHANGE_FLAG):
            self._predictions.add(latency_ms, failed=failed)
        if failed:
            self._errors[name, str(exception)] += 1

    def note(self, what: str, seen: object) -> None:
        """Keep one example of a fault."""
        self._examples.setdefault(what, str(seen))

    def figures(self) -> dict[str, Any]:
        """requests: by name; predictions: all of them together; errors: by name and message, with one example each."""
        elapsed_s = self._last_s - self._started_s if self._started_s is not None else 0.0
        return {
            "elapsed_s": elapsed_s,
            "requests": [
                {"name": name, **latencies.figures(elapsed_s)} for name, latencies in sorted(self._by_name.items())
            ],
            "predictions": self._predictions.figures(elapsed_s),
            "failures": sum(latencies.failures for latencies in self._by_name.values()),
            "errors": [
                {"name": name, "message": message, "count": count, "example": self._examples.get(message, "")}
                for (name, message), count in self._errors.most_common()
            ],
        }


def write(path: Path, counts: Counts, variants: Mapping[str, Mapping[str, int]], *, users: int, finished: bool) -> None:
    """Replace the report in one step. variants: requests by variant, per model."""
    shares = {model: dict(of_model) for model, of_model in sorted(variants.items())}
    document = {"schema": 1, "finished": finished, "users": users, **counts.figures(), "variants": shares}
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(json.dumps(document))
    beside.replace(path)
