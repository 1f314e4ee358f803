"""One prediction on its way: what is known of it when it comes in, what is found out, and where its answer goes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING

from gateway.codecs.codec import Headers, Request
from gateway.errors import GatewayError
from gateway.flags.compile import Decision, ModelOptions, Route
from gateway.serving.entry import Entry
from gateway.serving.replies import Block
from gateway.serving.target import Target

if TYPE_CHECKING:  # a call holds the things that the stations behind it hand around
    from gateway.serving.guard import Arm
    from gateway.serving.registry import LiveVersion
    from gateway.serving.trace import Trace

log = getLogger(__name__)

# Called once with the answer: an error or None, the headers that say who answered, those of the body, the body.
OnReply = Callable[["Call", GatewayError | None, Block, Headers, bytes], None]


# Requests that a log line about many of them names.
_MAX_NAMED = 20


class Call(Entry):
    """One prediction. Made by admission, completed by the pipeline; lives on the event loop.

    started_s, deadline_s: on the worker's monotonic clock. held_bytes: of its body, and later also of its tensors, as
    admission counts them. on_reply is called once, unless the caller leaves first.
    A call waits in the batch queue itself; equal calls that come meanwhile follow it.
    What a call does not know yet stands in the class: setting it for each call would cost more than it tells.
    """

    body: bytes = b""
    coding: str | None = None  # how its body is compressed, until it is inflated
    on_reply: OnReply | None = None
    on_earlier: Callable[[float], None] | None = None  # told of a deadline that its body moves forward
    # Set by the router, as they were in force at that moment:
    route: Route
    options: ModelOptions
    sampling_limit: float
    decision: Decision | None = None
    live: LiveVersion
    is_held: bool = False  # the version is kept for this call
    arm: Arm | None = None  # where it counts and who answers if its version fails; None: nowhere, and nobody
    # Set by the pipeline:
    cache: str = "bypass"
    is_cached: bool = False  # looks into the cache and is kept there
    is_plain: bool = False  # few rows, and nothing said about the reply
    cache_epoch: int = 0  # of its version, when it was looked up
    raw_key: object = None
    key: object = None  # of its inputs: equal calls find it by this
    leader: Call | None = None  # the equal call whose run it waits for
    followers: tuple[Call, ...] = ()  # equal calls that wait for this one's run
    left: bool = False
    waits_for_log: bool = False  # its answer is ready, and goes out once the disk has it
    trace: Trace | None = None  # set by a pipeline that traces, for who is to have one

    def __init__(
        self,
        target: Target,
        headers: Mapping[str, str],
        request_id: str,
        prediction_id: str,
        started_s: float,
        deadline_s: float,
        held_bytes: int = 0,
    ) -> None:
        self.codec = target.codec
        self.model = target.model
        self.pinned = target.version  # the version that the path asks for
        self.headers = headers  # lower-case names
        self.request_id = request_id
        self.prediction_id = prediction_id
        self.started_s = started_s
        self.deadline_s = deadline_s
        self.run_by_s = deadline_s
        self.held_bytes = held_bytes

    def take_request(self, request: Request) -> None:
        """What was decoded."""
        super().take_request(request)
        self.is_plain = request.is_plain

    @property
    def ids(self) -> dict[str, str]:
        """By what log lines name it."""
        ids = {"model": self.model, "request_id": self.request_id, "prediction_id": self.prediction_id}
        return ids if self.trace is None else {**ids, "trace_id": self.trace_id}

    @property
    def trace_id(self) -> str:
        """Of its trace; empty if it has none."""
        return "" if self.trace is None else f"{self.trace.trace_id:032x}"

    @property
    def falls_back(self) -> bool:  # type: ignore[override]  # an entry says once what a call has to look up
        arm = self.arm
        return arm is not None and arm.guard is not None

    @property
    def key_of_arm(self) -> str | None:
        """By which the split put it into its arm; None: by its prediction id."""
        return self.headers.get("x-targeting-key") or None

    def stand_in(self) -> Call:
        """What takes its place in a run that it leaves, and leads those that follow it; nobody waits for itself."""
        stand_in = copy.copy(self)
        stand_in.on_reply, stand_in.left, stand_in.is_held, stand_in.arm = None, True, False, None
        stand_in.gone = not self.followers
        return stand_in

    def release_followers(self) -> tuple[Call, ...]:
        """Its followers, which from now on do not hold each other: nothing is left for the cycle collector."""
        followers, self.followers = self.followers, ()
        for call in followers:
            call.leader = None
        return followers

    def start_again(self, live: LiveVersion, decision: Decision) -> None:
        """Forget how far it came, and be decided anew."""
        self.live, self.decision, self.arm, self.is_held = live, decision, None, True
        self.cache, self.is_cached, self.is_plain, self.is_invalid = "bypass", False, False, False
        self.raw_key = self.key = self.leader = self.flat = self.spec = self._request = self.parts = None
        self.followers = ()
        self.rows, self.taken, self.gone, self.run_by_s = 1, 0, False, self.deadline_s


def ids_of(calls: Sequence[Call]) -> dict[str, list[dict[str, str]]]:
    """By what a log line about several names them: some of them, if they are many."""
    return {"requests": [call.ids for call in calls[:_MAX_NAMED]]}


def decode_plain(live: LiveVersion, calls: list[Call]) -> list[bytes | None]:
    """The values of the calls whose bodies can be read together with others; None for those to be read alone."""
    codec = calls[0].codec
    try:
        if not all([call.codec is codec and not codec.cache_headers(call.headers) for call in calls]):  # noqa: C419  # faster
            return [decode_plain(live, [call])[0] for call in calls] if len(calls) > 1 else [None]
        return live.bound[codec.name].decode_plain([call.body for call in calls])
    except Exception:  # each by itself, then: the one that did it must not take the others along
        log.exception("bodies could not be read together", extra={"version": live.version, **ids_of(calls)})
        return [None] * len(calls)
