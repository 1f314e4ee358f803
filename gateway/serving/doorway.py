"""What all doors of a worker share: which path is a prediction, and the parts that a prediction goes through."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gateway.codecs.codec import JSON_HEADERS
from gateway.errors import GatewayError
from gateway.serving.admission import Admission
from gateway.serving.call import Call, OnReply
from gateway.serving.counts import Counts
from gateway.serving.heads import HeadReader
from gateway.serving.inflating import Inflater
from gateway.serving.keyring import KeyRing
from gateway.serving.packing import Packer
from gateway.serving.pipeline import Pipeline
from gateway.serving.replies import NO_HEADERS, Reply
from gateway.serving.target import PredictionPath, Target

if TYPE_CHECKING:
    from gateway.serving.traced import TracedPipeline

# Targets remembered by raw path; clients use few, and whoever sends many others must not fill the memory.
_MAX_TARGETS = 4096
_MAX_PATH_BYTES = 512


@dataclass(frozen=True, slots=True)
class Doorway:
    """The parts that a door needs.

    paths: the table of prediction paths. packer: compresses answers. ring: None while no API keys are asked for.
    traced: the pipeline, if it traces. default_model: what paths mean that name none; empty if nobody knows.
    """

    admission: Admission
    pipeline: Pipeline
    counts: Counts
    paths: Sequence[PredictionPath]
    packer: Packer
    ring: KeyRing | None = None
    traced: TracedPipeline | None = None
    default_model: Callable[[], str] = str
    _targets: dict[bytes, Target | None] = field(default_factory=dict)
    _patterns: tuple[tuple[re.Pattern[str], PredictionPath], ...] = field(init=False)
    heads: HeadReader = field(init=False)
    inflater: Inflater = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", HeadReader(self.target))
        object.__setattr__(self, "_patterns", tuple([(_compiled(path.pattern), path) for path in self.paths]))
        object.__setattr__(self, "inflater", Inflater(self.admission, self.pipeline, self.turn_away))

    def begin(self, call: Call, on_reply: OnReply) -> None:
        """Take an admitted call, its body read, to the pipeline, once it is inflated if it came compressed."""
        if call.coding is None:
            self.pipeline.begin(call, on_reply)
        else:
            self.inflater.begin(call, on_reply)

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
        path = unquote(raw_path.partition(b"?")[0].decode("latin-1"))
        for pattern, row in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return self.target_of(row, match.groupdict())
        return None

    def target_of(self, row: PredictionPath, parts: Mapping[str, str]) -> Target:
        """What a path of *row* with these parts asks for."""
        return row.target(parts, "" if "model" in parts else self.default_model())

    def forget_targets(self) -> None:
        """The default model may be another from now on: paths are read anew."""
        self._targets.clear()
        self.heads.forget()

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


def _compiled(pattern: str) -> re.Pattern[str]:
    """A path's pattern, with a group for each of its parts."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    return re.compile(
        "".join([f"(?P<{piece}>[^/]+)" if place % 2 else re.escape(piece) for place, piece in enumerate(pieces)])
    )
