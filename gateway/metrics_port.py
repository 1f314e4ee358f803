"""The setting of a port that tells the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """A port that tells the metrics to whoever reaches it: control's own page is for those with a token."""

    listen: str = ""  # HOST:PORT, as 127.0.0.1:9091 or [::]:9091; port 0 picks a free one; empty: no such port

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and int(port) <= 65535
        if self.listen and not (host and is_port):
            raise InvalidSetting(f"setting 'metrics.listen': expected HOST:PORT, got {self.listen!r}")

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None for no such port."""
        if not self.listen:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
