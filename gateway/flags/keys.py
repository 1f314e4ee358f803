"""API keys of the data plane: what is kept of one, and what a worker knows it by.

A secret reads ``slk_<id>_<random>``; kept is its SHA-256 alone. Random secrets of 256 bits need no slower hash: nobody
can go through them, and a worker can afford it. Keys are records beside the flags: a key and its audit row are one
transaction, and workers get them by the way of the flags.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import secrets
from dataclasses import dataclass
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.flags.store import KEYS, Record

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
# The highest priorities that a key may be made for, as `x-request-priority` names them.
PRIORITIES = ("normal", "critical")
_PREFIX = "slk"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key without its secret. digest: SHA-256 of the secret, in hex. models: those it is good for, None: all.

    rate_per_s, burst: requests per second that one worker admits, and how many at once after a pause; None: any number.
    created_s, expires_s: unix seconds; None: it does not expire. priority: the highest that its requests may claim;
    keys that were made before there was this field have the default.
    """

    id: str
    name: str
    digest: str
    models: tuple[str, ...] | None
    rate_per_s: float | None
    burst: int | None
    created_s: float
    expires_s: float | None
    priority: str = PRIORITIES[0]

    def __post_init__(self) -> None:
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")

    def allows(self, model: str) -> bool:
        """Whether it is good for a model."""
        return self.models is None or model in self.models

    @property
    def target(self) -> str:
        """Its name in audit rows."""
        return f"key:{self.id}"

    def to_json(self) -> dict[str, Any]:
        """What people may see: all but the digest."""
        plain = dataclasses.asdict(self)
        del plain["digest"]
        return {**plain, "models": None if self.models is None else list(self.models)}

    def to_body(self) -> dict[str, Any]:
        """The body of its record, without the id that the record has."""
        plain = {**self.to_json(), "digest": self.digest}
        del plain["id"]
        if self.priority == PRIORITIES[0]:
            del plain["priority"]  # gateways that do not know the field yet can read the record
        return plain


def draft() -> tuple[str, str]:
    """The id and the secret of a new key."""
    key_id = secrets.token_hex(4)
    return key_id, f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"


def id_of(secret: str) -> str:
    """The id that a secret says it has; empty for what is no API key."""
    prefix, _, rest = secret.partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def digest_of(secret: str) -> str:
    """What a secret is known by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def burst_for(rate_per_s: float) -> int:
    """The burst of a key that was given none: what a second brings."""
    return max(1, math.ceil(rate_per_s))


def read_key(record: Record) -> ApiKey:
    """The key of a record. Raises StoreUnavailable if it is none."""
    body = record.body
    try:
        models = body["models"]
        return ApiKey(**{**body, "id": record.id, "models": None if models is None else tuple(models)})
    except (TypeError, KeyError, ValueError) as error:
        raise StoreUnavailable(f"the record {KEYS} {record.id!r} is no key that this gateway wrote") from error
