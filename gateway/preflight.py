"""What is looked at before any child is started, so that it is told once and not by each of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from gateway.errors import CannotStart
from gateway.settings import Settings


def check_certificates(settings: Settings, parts: Collection[str]) -> None:
    """Whether certificates, keys and authorities of the ports of *parts* can be used. Raises InvalidSetting."""
    for part, section, port in (("serving", "server", settings.server), ("control", "control", settings.control)):
        if part in parts and port.tls_certificate:
            from gateway import tls  # here and not above: most gateways need no OpenSSL

            tls.server_context(port.tls_certificate, port.tls_key, port.tls_client_ca, section=section)


def check_tracing(settings: Settings) -> None:
    """Whether traces can be sent, if they shall be. Raises CannotStart."""
    if not settings.tracing.endpoint:
        return
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # of what it is in
        found = None
    if found is None:
        raise CannotStart("tracing.endpoint needs OpenTelemetry; pip install 'sluicegate[otel]'")


def check_shared_store(url: str) -> None:
    """What no child could serve with is told before any is started. Raises CannotStart, InvalidSetting."""
    if importlib.util.find_spec("psycopg") is None:
        raise CannotStart("flags.store names a PostgreSQL database; pip install 'sluicegate[postgres]' to reach it")
    from gateway.flags import pglink  # here and not above: most gateways have no database

    pglink.read_address(url, application="sluicegate")
