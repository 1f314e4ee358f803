"""What is known of one traced request until its spans are made."""

from __future__ import annotations

from typing import NamedTuple

Attributes = dict[str, str | int | float | bool]
# Stands among the headers of a prediction that is no POST, with its method. No client's header begins so.
METHOD_HEADER = ":method"


class Step(NamedTuple):
    """What becomes one span. begun_s, ended_s: on the worker's monotonic clock. failure: empty if all went well."""

    name: str
    begun_s: float
    ended_s: float
    attributes: Attributes
    failure: str = ""


class Trace:
    """One traced request, on the event loop until its answer, then with the thread that exports.

    parent_id: of the caller's span, 0 if it has none. state: the caller's tracestate. steps: in the order of their
    ends; whole: the request itself. since_s: when the last step ended that its version took. looks_s: when the look
    into the cache began that is not over, 0 if there is none; looks_for: the body, or the inputs. ended_ns: Unix time
    of the end of whole.
    """

    __slots__ = (
        "ended_ns",
        "looks_for",
        "looks_s",
        "parent_id",
        "since_s",
        "span_id",
        "state",
        "steps",
        "trace_id",
        "whole",
    )

    def __init__(self, trace_id: int, span_id: int, parent_id: int = 0, state: str = "") -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.state = state
        self.steps: list[Step] = []
        self.whole: Step | None = None
        self.since_s = self.looks_s = 0.0
        self.looks_for = ""
        self.ended_ns = 0

    @property
    def response(self) -> bytes:
        """How the answer names it (W3C Trace Context, level 2, traceresponse)."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01".encode()
