"""What a prediction path asks for, and how the paths of the protocols are written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.codecs.codec import Codec


class Label(str):
    """The name of a variant, where a path could also name a version: it pins the version that the variant has."""

    __slots__ = ()


class Unnamed(str):
    """The model that a path means which names none; empty if nobody knows which."""

    __slots__ = ()


class Target(NamedTuple):
    """A protocol, a model, and a version if the path pins one."""

    codec: Codec
    model: str
    version: str | None


@dataclass(frozen=True, slots=True)
class PredictionPath:
    """One row of the table of prediction paths.

    pattern: the path, with ``{model}``, ``{version}`` and ``{label}`` for its parts; without ``{model}`` it means the
    default model. methods: those that are answered; all but POST go through the ASGI app in any case.
    """

    pattern: str
    codec: Codec
    methods: tuple[str, ...] = ("POST",)

    def target(self, parts: Mapping[str, str], default_model: str) -> Target:
        """What a path with these parts asks for."""
        label = parts.get("label")
        pinned = Label(label) if label is not None else parts.get("version")
        model = parts.get("model")
        return Target(self.codec, Unnamed(default_model) if model is None else model, pinned)
