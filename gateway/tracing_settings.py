"""The settings of traces: where they go, and how many requests are traced."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.errors import InvalidSetting

# Where a collector takes spans, if its address names no path (OTLP specification, "Endpoint URLs for OTLP/HTTP").
_PATH = "/v1/traces"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Spans of predictions, sent to a collector by OTLP over HTTP; without an endpoint there are none."""

    endpoint: str = ""  # as http://collector:4318 or https://host/v1/traces; empty: nothing is traced
    sample_ratio: float = 0.01  # share of the requests that are traced, of those that come without a traceparent
    max_queue_traces: int = 2048  # traces that may wait for the collector, per worker; more are dropped and counted

    def __post_init__(self) -> None:
        if self.endpoint:
            _check(self.endpoint)

    @property
    def url(self) -> str:
        """Where the spans are posted."""
        parts = urlsplit(self.endpoint)
        return self.endpoint if parts.path not in ("", "/") else parts._replace(path=_PATH).geturl()


def _check(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise InvalidSetting(f"setting 'tracing.endpoint': expected http://HOST:PORT or https://..., got {endpoint!r}")
    if parts.username is not None:
        expected = "no user in it; OTEL_EXPORTER_OTLP_HEADERS in the environment says who sends"
        raise InvalidSetting(f"setting 'tracing.endpoint': expected {expected}")
