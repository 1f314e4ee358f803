"""The settings of the admin port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The admin port: never the public one."""

    host: str = "127.0.0.1"
    port: int = 8081
    name: str = ""  # how notifications call this gateway; empty: the name of the host
    keep_alive_s: int = 75  # this and the next four as those of [server], for the admin port
    request_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    max_header_bytes: int = 32 * 1024
    max_connections: int = 1000
    tls_certificate: str = ""  # as those of [server], for the admin port
    tls_key: str = ""
    tls_client_ca: str = ""
    retrain_cool_down_s: float = 86_400.0  # after advice to retrain a model there is none on it for so long
