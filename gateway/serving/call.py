"""One prediction on its way: what is known of it when it comes in, what is found out, and where its answer goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gateway.codecs.codec import Codec, Request
from gateway.flags.compile import Decision, ModelOptions, Route
from gateway.serving.replies import Reply

if TYPE_CHECKING:  # a call holds the things that the stations behind it hand around
    from gateway.serving.batcher import Entry
    from gateway.serving.registry import LiveVersion


class Call:
    """One prediction. Made by admission, completed by the pipeline; lives on the event loop.

    started_s, deadline_s: on the worker's monotonic clock. on_reply is called once, unless the caller leaves first.
    What a call does not know yet stands in the class: setting it for each call would cost more than it tells.
    """

    body: bytes = b""
    on_reply: Callable[[Reply], None] | None = None
    # Set by the router, as they were in force at that moment:
    route: Route | None = None
    options: ModelOptions | None = None
    decision: Decision | None = None
    live: LiveVersion | None = None  # held from routing to the reply
    # Set by the pipeline:
    request: Request | None = None
    raw_key: object = None
    entry: Entry | None = None  # in the batch queue, perhaps shared with equal calls
    cache: str = "bypass"
    left: bool = False

    def __init__(
        self,
        codec: Codec,
        model: str,
        pinned: str | None,
        headers: Mapping[str, str],
        request_id: str,
        prediction_id: str,
        started_s: float,
        deadline_s: float,
    ) -> None:
        self.codec = codec
        self.model = model
        self.pinned = pinned  # the version that the path asks for
        self.headers = headers  # lower-case names
        self.request_id = request_id
        self.prediction_id = prediction_id
        self.started_s = started_s
        self.deadline_s = deadline_s
