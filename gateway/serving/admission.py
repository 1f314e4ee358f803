"""The gate: from a request's head alone, either a Call with its deadline and ids, or a refusal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from gateway.codecs.codec import Codec
from gateway.errors import BodyTooLarge, InvalidInput, TooManyInFlight, UnsupportedEncoding
from gateway.serving.call import Call
from gateway.settings import LimitSettings

MAX_REQUEST_ID = 128


class Admission:
    """Decides from headers only, before a byte of the body is read. Used on the event loop only."""

    def __init__(
        self,
        settings: LimitSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_bits: Callable[[int], int] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        # Ids must differ between workers and boots; they are no secret.
        self._random_bits = random_bits or random.Random().getrandbits
        self.in_flight = 0

    @property
    def max_body_bytes(self) -> int:
        return self._settings.max_body_bytes

    def now_s(self) -> float:
        """The clock that deadlines are told by."""
        return self._clock()

    def open(self, codec: Codec, model: str, pinned: str | None, headers: Mapping[str, str]) -> Call:
        """Admit a request by its head. headers: lower-case names. The door calls `close` once it is answered.

        Raises TooManyInFlight, BodyTooLarge, UnsupportedEncoding, InvalidInput.
        """
        if self.in_flight >= self._settings.max_in_flight:
            raise TooManyInFlight(f"{self.in_flight} requests are in flight in this worker, the most it takes")
        length = headers.get("content-length")
        if length is not None and length.isdecimal() and int(length) > self.max_body_bytes:
            raise BodyTooLarge(int(length), self.max_body_bytes)
        encoding = headers.get("content-encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            raise UnsupportedEncoding(
                f"header content-encoding: expected identity, got {headers['content-encoding'][:40]!r}"
            )
        now_s = self._clock()
        timeout_s = self._timeout_s(headers) if "x-request-timeout-ms" in headers else self._settings.deadline_s
        prediction_id = "%032x" % self._random_bits(128)  # noqa: UP031  # half the time of an f-string with a format
        request_id = self.request_id(headers) if "x-request-id" in headers else prediction_id[:16]
        self.in_flight += 1
        return Call(codec, model, pinned, headers, request_id, prediction_id, now_s, now_s + timeout_s)

    def close(self) -> None:
        """A request that was admitted has its answer, or nobody to give it to."""
        self.in_flight -= 1

    def shorten(self, call: Call, timeout_s: float) -> None:
        """Take over a deadline that the body asks for, if it is the earlier one."""
        call.deadline_s = min(call.deadline_s, call.started_s + timeout_s)

    def request_id(self, headers: Mapping[str, str]) -> str:
        """The client's own id if it can travel in a header, else a new one."""
        came = headers.get("x-request-id")
        if came and len(came) <= MAX_REQUEST_ID and came.isascii() and came.isprintable():
            return came
        return f"{self._random_bits(64):016x}"

    def _timeout_s(self, headers: Mapping[str, str]) -> float:
        came = headers["x-request-timeout-ms"]
        try:
            timeout_s = float(came) / 1000
        except ValueError:
            timeout_s = -1.0
        if not timeout_s > 0:
            raise InvalidInput("header x-request-timeout-ms", repr(came[:40]), "milliseconds above 0")
        return min(timeout_s, self._settings.max_deadline_s)
