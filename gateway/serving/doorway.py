"""What all doors of a worker share: which path is a prediction, and the parts that a prediction goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gateway.codecs.codec import JSON_HEADERS, Codec
from gateway.errors import GatewayError
from gateway.serving.admission import Admission
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.heads import HeadReader
from gateway.serving.keyring import KeyRing
from gateway.serving.pipeline import Pipeline
from gateway.serving.replies import NO_HEADERS, Reply
from gateway.serving.target import Target

if TYPE_CHECKING:
    from gateway.serving.traced import TracedPipeline

# Targets remembered by raw path; clients use few, and whoever sends many others must not fill the memory.
_MAX_TARGETS = 4096
_MAX_PATH_BYTES = 512


@dataclass(frozen=True, slots=True)
class Doorway:
    """The parts that a door needs.

    codecs: those of prediction paths, by name. ring: None while no API keys are asked for. traced: the pipeline, if it
    traces.
    """

    admission: Admission
    pipeline: Pipeline
    counts: Counts
    codecs: Mapping[str, Codec]
    ring: KeyRing | None = None
    traced: TracedPipeline | None = None
    _targets: dict[bytes, Target | None] = field(default_factory=dict)
    heads: HeadReader = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", HeadReader(self.target))

    def target(self, raw_path: bytes) -> Target | None:
        """What a path as it came (with its query, if any) asks for; None if it is no prediction path."""
        try:
            return self._targets[raw_path]
        except KeyError:
            found = self._parse(raw_path)
            if len(raw_path) <= _MAX_PATH_BYTES:
                if len(self._targets) >= _MAX_TARGETS:
                    self._targets.clear()
                self._targets[raw_path] = found
            return found

    def _parse(self, raw_path: bytes) -> Target | None:
        if b"#" in raw_path or b"%2F" in raw_path.upper():
            return None  # the ASGI app says what is meant
        path = raw_path.partition(b"?")[0].decode("latin-1")
        parts = [unquote(part) for part in path.split("/")]
        if not all(parts[1:]):
            return None
        match parts:
            case ["", "predict", model]:
                return Target(self.codecs["native"], model, None)
            case ["", "v2", "models", model, "infer"]:
                return Target(self.codecs["oip"], model, None)
            case ["", "v2", "models", model, "versions", version, "infer"]:
                return Target(self.codecs["oip"], model, version)
        return None

    def turn_away(self, asked: Target | Call, headers: Mapping[str, str], error: GatewayError) -> Reply:
        """The reply to a request that got no further than its head or body."""
        self.counts.refused(error.code)
        if self.ring is not None:
            self.ring.refused(error)
        request_id = self.admission.request_id(headers)
        route = NO_HEADERS
        if self.traced is not None:
            route = self.traced.turned_away(asked, headers, error, request_id)
        return Reply(error, request_id, "", route, JSON_HEADERS, asked.codec.error(error))


def by_name(codecs: Sequence[Codec]) -> dict[str, Codec]:
    return {codec.name: codec for codec in codecs}
