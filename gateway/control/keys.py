"""The API keys of the data plane: made, rotated and ended, each together with its audit row."""

from __future__ import annotations

import dataclasses
import hmac
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import ChangeRefused, InvalidInput, Unauthenticated, UnknownKey
from gateway.flags.audit import Author
from gateway.flags.document import MODEL_PATTERN
from gateway.flags.keys import NAME_PATTERN, PRIORITIES, ApiKey, burst_for, digest_of, draft, id_of, read_key
from gateway.flags.store import KEYS, FlagStore, Note, RecordWrite

# Every worker holds them all, and each may have a label of its own in the metrics.
MAX_KEYS = 1000
MAX_MODELS = 100
MAX_RATE_PER_S = 1e6
MAX_LIFETIME_S = 10 * 365 * 86_400.0
MAX_GRACE_S = 90 * 86_400.0
# Compared with when no key has the id that came, so that an unknown id takes the time of a wrong secret.
_NOBODY = "0" * 64
_FIELDS = frozenset({"name", "models", "rate_per_s", "burst", "expires_in_s", "priority"})


class KeyBook:
    """The keys in the store. Methods block and may be called from any thread; all raise StoreUnavailable."""

    def __init__(self, store: FlagStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()

    def all(self) -> list[ApiKey]:
        """All keys, also those that have expired, oldest first."""
        found = [read_key(record) for record in self._store.records(KEYS)]
        return sorted(found, key=lambda key: (key.created_s, key.id))

    def create(self, body: Mapping[str, Any], *, author: Author, reason: str) -> tuple[ApiKey, str]:
        """A new key and its secret, which is never shown again. Raises InvalidInput, ChangeRefused."""
        plan = self._planned(body)
        with self._lock:  # two at a time could be one too many
            self._check_room()
            key, secret = _made(plan)
            noted = Note("key.create", key.target, after=key.to_json())
            self._write("key.create", [_put(key)], [noted], author, reason)
        return key, secret

    def rotate(self, key_id: str, grace_s: float, *, author: Author, reason: str) -> tuple[ApiKey, ApiKey, str]:
        """A new key in the place of another, which stays good for *grace_s* more at the most.

        Returns the new one, the old one as it is from now on, and the secret of the new one. What the old one is good
        for, the new one is, too; one that would expire gets the whole of its lifetime anew. Raises UnknownKey.
        """
        with self._lock:
            self._check_room()
            old, now_s = self._find(key_id), self._clock()
            ends_s = now_s + grace_s
            ending = dataclasses.replace(old, expires_s=ends_s if old.expires_s is None else min(old.expires_s, ends_s))
            lifetime_s = None if old.expires_s is None else now_s + old.expires_s - old.created_s
            key, secret = _made(dataclasses.replace(old, created_s=now_s, expires_s=lifetime_s))
            notes = [
                Note("key.rotate", old.target, before=old.to_json(), after={**ending.to_json(), "replaced_by": key.id}),
                Note("key.create", key.target, after={**key.to_json(), "replaces": old.id}),
            ]
            self._write("key.rotate", [_put(key), RecordWrite(KEYS, old.id, ending.to_body())], notes, author, reason)
        return key, ending, secret

    def revoke(self, key_id: str, *, author: Author, reason: str) -> ApiKey:
        """End a key; it is gone, and the audit trail remembers it. Raises UnknownKey."""
        with self._lock:
            key = self._find(key_id)
            noted = Note("key.revoke", key.target, before=key.to_json())
            self._write("key.revoke", [RecordWrite(KEYS, key_id, None)], [noted], author, reason)
        return key

    def authenticate(self, secret: str) -> ApiKey:
        """The key that *secret* is. Raises Unauthenticated."""
        record = self._store.record(KEYS, id_of(secret))
        key = None if record is None else read_key(record)
        matches = hmac.compare_digest(digest_of(secret), _NOBODY if key is None else key.digest)
        if key is None or not matches:
            raise Unauthenticated("the API key is not known")
        if key.expires_s is not None and self._clock() >= key.expires_s:
            raise Unauthenticated(f"the API key {key.id} has expired")
        return key

    def _find(self, key_id: str) -> ApiKey:
        record = self._store.record(KEYS, key_id)
        if record is None:
            raise UnknownKey(f"no API key {key_id!r}")
        return read_key(record)

    def _check_room(self) -> None:
        if len(self._store.records(KEYS)) >= MAX_KEYS:
            raise ChangeRefused(f"there are {MAX_KEYS} API keys already: revoke those that nobody needs any more")

    def _write(self, verb: str, records: list[RecordWrite], notes: list[Note], author: Author, reason: str) -> None:
        self._store.commit(author=author, verb=verb, reason=reason, records=records, notes=notes)

    def _planned(self, body: Mapping[str, Any]) -> ApiKey:
        """What was asked for, as a key without id and digest. Raises InvalidInput."""
        for unknown in sorted(body.keys() - _FIELDS):
            raise InvalidInput(unknown, "an unknown field", f"only {', '.join(sorted(_FIELDS))}")
        name: Any = body.get("name")
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise InvalidInput("name", repr(name)[:80], f"text matching {NAME_PATTERN.pattern}")
        rate_per_s = _number(body, "rate_per_s", 1e-3, MAX_RATE_PER_S)
        burst = _number(body, "burst", 1, MAX_RATE_PER_S)
        if burst is not None and (rate_per_s is None or burst != int(burst)):
            raise InvalidInput("burst", repr(body["burst"])[:80], "a whole number, beside a rate_per_s")
        if rate_per_s is not None and burst is None:
            burst = burst_for(rate_per_s)
        lifetime_s = _number(body, "expires_in_s", 1, MAX_LIFETIME_S)
        priority: Any = body.get("priority", PRIORITIES[0])
        if priority not in PRIORITIES:
            raise InvalidInput("priority", repr(priority)[:80], " or ".join(PRIORITIES))
        now_s = self._clock()
        return ApiKey(
            id="",
            name=name,
            digest="",
            models=_models(body.get("models")),
            rate_per_s=rate_per_s,
            burst=None if burst is None else int(burst),
            created_s=now_s,
            expires_s=None if lifetime_s is None else now_s + lifetime_s,
            priority=priority,
        )


def _made(plan: ApiKey) -> tuple[ApiKey, str]:
    key_id, secret = draft()
    return dataclasses.replace(plan, id=key_id, digest=digest_of(secret)), secret


def _put(key: ApiKey) -> RecordWrite:
    return RecordWrite(KEYS, key.id, key.to_body(), expected_revision=0)


def _models(given: Any) -> tuple[str, ...] | None:
    """Models need not be there yet."""
    if given is None:
        return None
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MODELS:
        raise InvalidInput("models", repr(given)[:80], f"a list of 1 to {MAX_MODELS} names of models, or null for all")
    for model in given:
        if not isinstance(model, str) or not MODEL_PATTERN.fullmatch(model):
            raise InvalidInput("models", repr(model)[:80], f"names of models, matching {MODEL_PATTERN.pattern}")
    return tuple(sorted(set(given)))


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    given = body.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InvalidInput(name, repr(given)[:80], f"a number from {low:g} to {high:g}")
    if not low <= given <= high:
        raise InvalidInput(name, repr(given)[:80], f"a number from {low:g} to {high:g}")
    return given
