"""One attempt to hand an event to a receiver, bounded in time and bytes, and how long to wait after one that failed."""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.control.events import CONTENT_TYPE, Event, signature
from gateway.control.reach import Reach, Unreachable, proxy_for
from gateway.control.webhooks import Webhook

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 5.0  # for everything: lookup, connection, TLS, request, answer
MAX_REPLY_BYTES = 16 * 1024  # read so that the connection can be used again; of a longer reply the rest is not
MAX_WHY_CHARACTERS = 300
GIVE_UP_AFTER_S = 24 * 3600.0
# The receiver says that it will never like this event; it blocks those behind it, so it gets less time.
REFUSALS = frozenset({400, 413, 415, 422})
GIVE_UP_REFUSED_AFTER_S = 3600.0

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 300.0

DELIVERED, GONE, REFUSED, TIMED_OUT, UNREACHABLE = "delivered", "gone", "refused", "timed_out", "unreachable"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one attempt. why: a line for people, empty if it was delivered.

    outcome: one of the words above. status: of the reply, None if none came. retry_after_s: as the receiver asked.
    """

    outcome: str
    status: int | None = None
    why: str = ""
    retry_after_s: float = 0.0


def backoff_s(failures: int, draw: Callable[[], float]) -> float:
    """How long to wait after so many failures in a row: doubling up to a bound, half of it by chance.

    draw: gives numbers from 0 to 1; by it, receivers that failed together are not tried again together.
    """
    longest = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(failures - 1, 30))
    return longest * (0.5 + 0.5 * draw())


class Sender:
    """Sends events from one event loop. reach: where to. clock: unix seconds."""

    def __init__(self, reach: Reach, *, clock: Callable[[], float]) -> None:
        self._reach = reach
        self._clock = clock
        self._clients: dict[str, httpx.AsyncClient] = {}  # by proxy

    async def send(self, webhook: Webhook, secret: str, event: Event) -> Attempt:
        """One attempt; never raises for anything that a receiver or a network can do."""
        timestamp_s = int(self._clock())
        headers = {
            "content-type": CONTENT_TYPE,
            "user-agent": f"sluicegate/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(secret, event.id, timestamp_s, event.body),
        }
        attempt: Attempt | None = None  # what the status says; how the rest of the reply ends does not matter
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._opened(webhook.url).stream("POST", webhook.url, headers=headers, content=event.body) as reply,
            ):
                attempt = self._judge(reply)
                await _read_a_little(reply)
        except Unreachable as error:
            return Attempt(UNREACHABLE, why=str(error)[:MAX_WHY_CHARACTERS])
        except TimeoutError:
            return attempt or Attempt(TIMED_OUT, why=f"no answer within {TIMEOUT_S:g} s")
        except Exception as error:  # foreign code on foreign bytes: httpx, TLS, a proxy, a name that cannot be encoded
            told = f"{type(error).__name__}: {error}".replace(webhook.url, webhook.place)
            return attempt or Attempt(UNREACHABLE, why=told[:MAX_WHY_CHARACTERS])
        return attempt

    async def close(self) -> None:
        """Close what is open; the next `send` opens it again."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    def _judge(self, reply: httpx.Response) -> Attempt:
        status = reply.status_code
        if 200 <= status < 300:
            return Attempt(DELIVERED, status)
        if status == 410:
            return Attempt(GONE, status, "the receiver answered 410 Gone")
        wait_s = _retry_after_s(reply.headers.get("retry-after", ""), self._clock())
        why = f"the receiver answered {status}"
        if 300 <= status < 400:
            why += "; redirects are not followed: add the webhook with the address where it is now"
        return Attempt(REFUSED, status, why, wait_s)

    def _opened(self, url: str) -> httpx.AsyncClient:
        """What sends to *url*: through the proxy of the environment, or to addresses that were judged."""
        proxy = proxy_for(url)
        if proxy:  # names are its business
            self._reach.check_literal(url)
        if proxy not in self._clients:
            import httpx  # takes 0.1 s, and most gateways have no webhook

            from gateway.control.guarded import GuardedTransport

            self._clients[proxy] = httpx.AsyncClient(
                timeout=None,  # noqa: S113  # `send` bounds the whole
                follow_redirects=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept
                proxy=proxy or None,
                transport=None if proxy else GuardedTransport(self._reach),
            )
        return self._clients[proxy]


def _retry_after_s(given: str, now_s: float) -> float:
    """Seconds, or an HTTP date; 0 for what is neither, and never longer than an event is kept."""
    given = given.strip()
    if given.isdecimal():
        wait_s = float(given[:10])
    else:
        try:
            wait_s = email.utils.parsedate_to_datetime(given).timestamp() - now_s
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(wait_s, 0.0), GIVE_UP_AFTER_S)


async def _read_a_little(reply: httpx.Response) -> None:
    read_bytes = 0
    async for chunk in reply.aiter_raw():
        read_bytes += len(chunk)
        if read_bytes > MAX_REPLY_BYTES:
            return
