"""The API keys that a worker lets in: who a request comes from, whether for this model, and within which quota.

Nothing here exists while `server.api_keys` is off. While it is on, a key that was verified is remembered by the header
value that it came in, so that the next request costs a look into a dictionary and no hash.
"""

from __future__ import annotations

import hmac
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from gateway.errors import GatewayError, KeyOutOfScope, KeysUnavailable, KeyUnknown, QuotaExceeded
from gateway.flags.keys import ApiKey, digest_of
from gateway.metrics import ServingMetrics
from gateway.serving.priority import NAMES, NORMAL

# Header values remembered. Only those of valid keys are, so nobody without one can push them out.
_MAX_VALUES = 4096
# Ids that get a label of their own in the metrics of one worker's life; those made thereafter share one.
_MAX_LABELS = 1000
_OTHERS = "other"
_ADMITTED = "admitted"


class HeldKey:
    """A key as a worker holds it, with its bucket of requests."""

    __slots__ = (
        *("admitted", "burst", "digest", "expires_s", "filled_s", "id", "lowered", "models", "priority", "rate_per_s"),
        "tokens",
    )

    def __init__(self, key: ApiKey, now_s: float) -> None:
        self.id = key.id
        self.digest = key.digest
        self.models = None if key.models is None else frozenset(key.models)
        self.expires_s = math.inf if key.expires_s is None else key.expires_s
        self.rate_per_s = key.rate_per_s
        self.burst = float(key.burst or 1)
        self.tokens = self.burst
        self.filled_s = now_s
        self.priority = NAMES.index(key.priority)  # the highest that its requests may claim
        self.admitted = self.lowered = 0  # since the last flush

    def allows(self, model: str) -> bool:
        """Whether the key is good for a model."""
        return self.models is None or model in self.models


class KeyRing:
    """Used on the event loop only. clock: monotonic. wall_clock: unix seconds, by which keys expire."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._held: dict[str, HeldKey] | None = None  # by digest; None until they could be read
        self._plain: dict[str, HeldKey] = {}  # by the value of x-api-key
        self._bearers: dict[str, HeldKey] = {}  # by the value of authorization
        self._refused: dict[tuple[str, str], int] = defaultdict(int)
        self._labels: set[str] = set()

    def take(self, keys: Iterable[ApiKey]) -> None:
        """From now on exactly these are let in. A key that stays keeps what is left of its quota."""
        before, now_s = self._held or {}, self._clock()
        held: dict[str, HeldKey] = {}
        for key in keys:
            held[key.digest] = made = HeldKey(key, now_s)
            old = before.get(key.digest)
            if old is not None:
                made.tokens, made.filled_s = min(old.tokens, made.burst), old.filled_s
                made.admitted, made.lowered = old.admitted, old.lowered
        self._held = held
        self._plain, self._bearers = {}, {}

    def identify(self, headers: Mapping[str, str], model: str | None) -> HeldKey:
        """Whose request it is. headers: lower-case names. model: the one that is asked for, None: none.

        ``x-api-key`` goes before ``authorization``. Raises KeyUnknown, KeyOutOfScope, KeysUnavailable.
        """
        came = headers.get("x-api-key")
        if came is not None:
            key = self._plain.get(came) or self._learn(self._plain, came, came.strip())
        else:
            came = headers.get("authorization", "")
            key = self._bearers.get(came) or self._learn(self._bearers, came, _bearer(came))
        if key.expires_s < math.inf and self._wall_clock() >= key.expires_s:
            raise KeyUnknown(f"the API key {key.id} has expired; ask for another one", key_id=key.id)
        if model is not None and key.models is not None and model not in key.models:
            raise KeyOutOfScope(f"the API key {key.id} is not good for this model", key_id=key.id)
        return key

    def charge(self, key: HeldKey) -> None:
        """Count a request of *key* that is let in. Raises QuotaExceeded."""
        rate_per_s = key.rate_per_s
        if rate_per_s is not None:
            now_s = self._clock()
            tokens = min(key.burst, key.tokens + (now_s - key.filled_s) * rate_per_s)
            key.filled_s = now_s
            if tokens < 1.0:
                key.tokens = tokens
                raise QuotaExceeded(
                    f"the API key {key.id} may send {rate_per_s:g} requests per second to a worker, "
                    f"{key.burst:g} at once",
                    retry_after_s=math.ceil((1.0 - tokens) / rate_per_s),
                    key_id=key.id,
                )
            key.tokens = tokens - 1.0
        key.admitted += 1

    def granted(self, headers: Mapping[str, str], claimed: int) -> int:
        """The priority of a request that was let in and claims *claimed*: no higher one than its key is good for.

        headers: lower-case names. A key that has ended since is good for what is usual.
        """
        try:
            key = self.identify(headers, None)
        except GatewayError:
            return max(claimed, NORMAL)
        if claimed >= key.priority:  # critical is the least number
            return claimed
        key.lowered += 1
        return key.priority

    def refused(self, error: GatewayError) -> None:
        """Count a request that was turned away, whatever for; what has nothing to do with keys is passed over."""
        if isinstance(error, KeyUnknown | KeyOutOfScope | QuotaExceeded):
            self._refused[error.key_id, error.code] += 1
        elif isinstance(error, KeysUnavailable):
            self._refused["", error.code] += 1

    def flush(self, metrics: ServingMetrics) -> None:
        """Hand the counts to the metrics."""
        for key in (self._held or {}).values():
            if key.admitted:
                metrics.api_key_requests.labels(self._label(key.id), _ADMITTED).inc(key.admitted)
                key.admitted = 0
            if key.lowered:
                metrics.lowered_priorities.labels(self._label(key.id)).inc(key.lowered)
                key.lowered = 0
        for (key_id, code), count in self._refused.items():
            metrics.api_key_requests.labels(self._label(key_id), code).inc(count)
        self._refused.clear()

    def _learn(self, known: dict[str, HeldKey], came: str, secret: str) -> HeldKey:
        """The key that a value not seen before stands for; it is remembered if there is one."""
        if self._held is None:
            raise KeysUnavailable("the API keys cannot be read yet")
        if not secret:
            raise KeyUnknown("send an API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        digest = digest_of(secret)
        key = self._held.get(digest)
        # Looked up by its hash, of which a guess tells nothing; and compared whole, in the same time for any.
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise KeyUnknown("the API key is not known")
        if len(known) >= _MAX_VALUES:
            known.clear()
        known[came] = key
        return key

    def _label(self, key_id: str) -> str:
        if key_id in self._labels:
            return key_id
        if len(self._labels) >= _MAX_LABELS:
            return _OTHERS
        self._labels.add(key_id)
        return key_id


def _bearer(came: str) -> str:
    kind, _, secret = came.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""
