"""One prediction on its way: what is known of it when it comes in, what is found out, and where its answer goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from gateway.codecs.codec import Codec, Headers, Request
from gateway.errors import GatewayError
from gateway.flags.compile import Decision, ModelOptions, Route

if TYPE_CHECKING:  # a call holds the things that the stations behind it hand around
    from gateway.serving.batcher import Entry
    from gateway.serving.registry import LiveVersion


class Reply(NamedTuple):
    """An answer for a door to send. headers: in the order of the contract, content-length left to the door.

    error: what went wrong, None if nothing did; the door chooses the status.
    """

    error: GatewayError | None
    headers: Headers
    body: bytes


class Call:
    """One prediction. Made by admission, completed by the pipeline; lives on the event loop.

    started_s, deadline_s: on the worker's monotonic clock. on_reply is called once, unless the caller leaves first.
    """

    __slots__ = (
        "body",
        "cache",
        "codec",
        "deadline_s",
        "decision",
        "flight",
        "headers",
        "left",
        "live",
        "model",
        "on_reply",
        "options",
        "pinned",
        "prediction_id",
        "raw_key",
        "request",
        "request_id",
        "route",
        "started_s",
        "targeting_key",
    )

    def __init__(
        self,
        codec: Codec,
        model: str,
        pinned: str | None,
        headers: Mapping[str, str],
        *,
        request_id: str,
        prediction_id: str,
        started_s: float,
        deadline_s: float,
    ) -> None:
        self.codec = codec
        self.model = model
        self.pinned = pinned  # the version that the path asks for
        self.headers = headers  # lower-case names
        self.body = b""
        self.request_id = request_id
        self.prediction_id = prediction_id
        self.targeting_key = headers.get("x-targeting-key")
        self.started_s = started_s
        self.deadline_s = deadline_s
        self.on_reply: Callable[[Reply], None] | None = None
        # Set by the router, as they were in force at that moment:
        self.route: Route | None = None
        self.options: ModelOptions | None = None
        self.decision: Decision | None = None
        self.live: LiveVersion | None = None  # held from routing to the reply
        # Set by the pipeline:
        self.request: Request | None = None
        self.raw_key: object = None
        self.flight: Flight | None = None
        self.cache = "bypass"
        self.left = False


class Flight:
    """Equal requests that wait for one run. The first to come starts it, but nobody owns it.

    A caller that leaves is taken out; the run is called off only when all have left. key: None if not shared.
    """

    __slots__ = ("calls", "entry", "key")

    def __init__(self, key: object, first: Call) -> None:
        self.key = key
        self.calls = [first]
        self.entry: Entry | None = None
