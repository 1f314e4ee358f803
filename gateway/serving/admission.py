"""The gate: from a request's head alone, either a Call with its deadline and ids, or a refusal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from gateway.errors import (
    BodyTooLarge,
    InvalidInput,
    QuotaExceeded,
    TooManyBytesInFlight,
    TooManyInFlight,
)
from gateway.serving.call import Call
from gateway.serving.codings import coding_of
from gateway.serving.keyring import KeyRing
from gateway.serving.priority import HEADER, priority_of, priority_of_number
from gateway.serving.shares import Shares
from gateway.serving.target import Target
from gateway.settings import LimitSettings

MAX_REQUEST_ID = 128
TIMEOUT_HEADER = "x-request-timeout-ms"
_IDS_AT_ONCE = 64


class Admission:
    """Decides from headers only, before a byte of the body is read. Used on the event loop only.

    in_flight, in_flight_bytes: the calls that are open, and what their bodies and the tensors made of them hold.
    deadline_s: of calls that ask for none, in seconds.
    """

    def __init__(
        self,
        settings: LimitSettings,
        *,
        max_in_flight_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        self._settings = settings
        self.deadline_s = settings.deadline_s
        self._max_in_flight = settings.max_in_flight
        self._clock = clock
        # Ids must differ between workers and boots; they are no secret.
        self._random_bytes = random_bytes or random.Random().randbytes
        self._ids: list[str] = []
        self._max_in_flight_bytes = max_in_flight_bytes
        self.in_flight = self.in_flight_bytes = 0
        # What could never be let in is too large, however long the client waits.
        self.max_body_bytes = min(settings.max_body_bytes, max_in_flight_bytes)

    def now_s(self) -> float:
        """The clock that deadlines are told by."""
        return self._clock()

    def open(self, target: Target, headers: Mapping[str, str], length: int | None = None) -> Call:
        """Admit a request by its head. The door calls `close` once it is answered.

        headers: lower-case names. length: bytes of the body, where the door knows it already.
        Raises TooManyInFlight, BodyTooLarge, TooManyBytesInFlight, UnsupportedEncoding, InvalidInput.
        """
        if self.in_flight >= self._max_in_flight:
            raise TooManyInFlight(f"{self.in_flight} requests are in flight in this worker, the most it takes")
        if length is None:
            text = headers.get("content-length")
            length = int(text) if text is not None and text.isdecimal() else 0
        if length > self.max_body_bytes:
            raise BodyTooLarge(length, self.max_body_bytes)
        if self.in_flight_bytes + length > self._max_in_flight_bytes:
            raise self._no_room(length)
        now_s = self._clock()
        timeout_s = self._timeout_s(headers) if TIMEOUT_HEADER in headers else self.deadline_s
        ids = self._ids
        if not ids:
            self._mint()
        prediction_id = ids.pop()
        request_id = self.request_id(headers) if "x-request-id" in headers else prediction_id[:16]
        call = Call(target, headers, request_id, prediction_id, now_s, now_s + timeout_s, length)
        if "content-encoding" in headers:
            call.coding = coding_of(headers["content-encoding"])
        if HEADER in headers:
            call.priority = self._granted(headers, priority_of(headers[HEADER]))
        self.in_flight += 1
        self.in_flight_bytes += length
        return call

    def hold(self, call: Call, size_bytes: int) -> None:
        """A call turns out to hold so many bytes in all, if not more. Raises BodyTooLarge, TooManyBytesInFlight."""
        more = size_bytes - call.held_bytes
        if more <= 0:
            return
        if self.in_flight_bytes + more > self._max_in_flight_bytes:
            if size_bytes > self._max_in_flight_bytes:
                raise BodyTooLarge(size_bytes, self._max_in_flight_bytes)
            raise self._no_room(more)
        call.held_bytes = size_bytes
        self.in_flight_bytes += more

    def _no_room(self, more_bytes: int) -> TooManyBytesInFlight:
        return TooManyBytesInFlight(
            f"requests in flight in this worker hold {self.in_flight_bytes} bytes, and with {more_bytes} more "
            f"it would be above {self._max_in_flight_bytes}"
        )

    def _mint(self) -> None:
        """Make ids ahead: many at once cost a third of one at a time."""
        digits = self._random_bytes(16 * _IDS_AT_ONCE).hex()
        self._ids += [digits[start : start + 32] for start in range(0, 32 * _IDS_AT_ONCE, 32)]

    def close(self, call: Call) -> None:
        """A request that was admitted has its answer, or nobody to give it to. Once per call."""
        self.in_flight -= 1
        self.in_flight_bytes -= call.held_bytes

    def shorten(self, call: Call, timeout_s: float) -> None:
        """Take over a deadline that the body asks for, if it is the earlier one."""
        deadline_s = call.started_s + timeout_s
        if deadline_s < call.deadline_s:
            call.deadline_s = call.run_by_s = deadline_s
            if call.on_earlier is not None:
                call.on_earlier(deadline_s)

    def prioritize(self, call: Call, number: int) -> None:
        """Take over a priority that the body asks for, in the numbers of its protocol, unless the head names one."""
        if HEADER not in call.headers:
            call.priority = self._granted(call.headers, priority_of_number(number))

    def _granted(self, headers: Mapping[str, str], claimed: int) -> int:
        """The priority that a claim is worth: itself, where nobody knows who makes it."""
        return claimed

    def request_id(self, headers: Mapping[str, str]) -> str:
        """The client's own id if it can travel in a header, else a new one."""
        came = headers.get("x-request-id")
        if came and len(came) <= MAX_REQUEST_ID and came.isascii() and came.isprintable():
            return came
        return self._random_bytes(8).hex()

    def _timeout_s(self, headers: Mapping[str, str]) -> float:
        came = headers[TIMEOUT_HEADER]
        try:
            timeout_s = float(came) / 1000
        except ValueError:
            timeout_s = -1.0
        if not timeout_s > 0:
            raise InvalidInput(f"header {TIMEOUT_HEADER}", repr(came[:40]), "milliseconds above 0")
        return min(timeout_s, self._settings.max_deadline_s)


class SharedAdmission(Admission):
    """Admission that tells clients apart by a header, and counts what each has in flight for a model.

    Those without that header are one client. A class of its own, so that others pay nothing for it.
    """

    def __init__(self, settings: LimitSettings, *, max_in_flight_bytes: int) -> None:
        super().__init__(settings, max_in_flight_bytes=max_in_flight_bytes)
        self._header = settings.client_header.lower()
        self.shares = Shares()

    def open(self, target: Target, headers: Mapping[str, str], length: int | None = None) -> Call:
        """See Admission."""
        call = super().open(target, headers, length)
        self.shares.join(call, headers.get(self._header, ""), target.model)
        return call

    def hold(self, call: Call, size_bytes: int) -> None:
        """See Admission. Asked when the call is decoded: its rows are known from then on."""
        super().hold(call, size_bytes)
        self.shares.grow(call)

    def close(self, call: Call) -> None:
        """See Admission."""
        super().close(call)
        self.shares.leave(call)


class KeyedAdmission(SharedAdmission):
    """Admission that asks for an API key first, and tells clients apart by it."""

    def __init__(self, settings: LimitSettings, ring: KeyRing, *, max_in_flight_bytes: int) -> None:
        super().__init__(settings, max_in_flight_bytes=max_in_flight_bytes)
        self._ring = ring

    def open(self, target: Target, headers: Mapping[str, str], length: int | None = None) -> Call:
        """See Admission. Raises KeyUnknown, KeyOutOfScope, QuotaExceeded, KeysUnavailable, too.

        Whose request it is comes before all else that could be wrong with it; what is refused is not charged.
        """
        key = self._ring.identify(headers, target.model)
        call = Admission.open(self, target, headers, length)
        try:
            self._ring.charge(key)
        except QuotaExceeded:
            self.close(call)
            raise
        self.shares.join(call, key.id, target.model)
        return call

    def _granted(self, headers: Mapping[str, str], claimed: int) -> int:
        """See Admission. Asks for the key again: few requests make a claim, and the others shall not pay for it."""
        return self._ring.granted(headers, claimed)
