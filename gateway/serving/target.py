"""What a prediction path asks for."""

from __future__ import annotations

from typing import NamedTuple

from gateway.codecs.codec import Codec


class Target(NamedTuple):
    """A protocol, a model, and a version if the path pins one."""

    codec: Codec
    model: str
    version: str | None
