"""Audit rows as CloudEvents 1.0, and the signature under which they travel; pure functions."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gateway.flags.audit import AuditRow

TYPE_PREFIX = "dev.sluicegate."
CONTENT_TYPE = "application/cloudevents+json"
SECRET_PREFIX = "whsec_"  # noqa: S105  # what a secret begins with, by the Standard Webhooks specification

# CloudEvents asks everybody to carry events of this size; larger ones travel without what the change was about.
MAX_EVENT_BYTES = 64 * 1024
# Who reads the trail leaves a row: as an event, it would make a receiver that reads the trail on each event do so for
# ever.
_NEVER_EVENTS = "audit."


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent. id: the same at every attempt, and after a restart, so that receivers can drop duplicates.

    time_s: unix seconds of what happened. about: the target of the audit row that it was made from.
    """

    id: str
    type: str
    about: str
    body: bytes


def source_of(name: str) -> str:
    """The CloudEvents source of the gateway called *name*: a URI reference."""
    return f"/sluicegate/{quote(name, safe='')}"


def event_of(row: AuditRow, source: str) -> Event | None:
    """The event that tells of *row*; None for rows that are none."""
    if row.verb.startswith(_NEVER_EVENTS):
        return None
    event_id = f"{row.seq}-{row.hash[:16]}"
    data = {
        "seq": row.seq,
        "verb": row.verb,
        "target": row.target,
        "actor": row.actor,
        "reason": row.reason,
        "revision": row.revision,
        "request_id": row.request_id,
        "before": row.before,
        "after": row.after,
    }
    document = envelope(event_id, row.verb, source, subject=_subject(row), time=row.ts, data=data)
    body = encode(document)
    if len(body) > MAX_EVENT_BYTES:
        document["data"] = {**data, "reason": row.reason[:1000], "before": None, "after": None, "truncated": True}
        body = encode(document)
    return Event(event_id, document["type"], row.target, body)


def envelope(event_id: str, verb: str, source: str, *, subject: str, time: str, data: Any) -> dict[str, Any]:
    """A CloudEvent in structured JSON mode. time: RFC 3339, UTC."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "type": TYPE_PREFIX + verb,
        "source": source,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }


def encode(document: dict[str, Any]) -> bytes:
    """A CloudEvent as bytes. Whatever a row may hold can be written so: large integers, and half a surrogate pair."""
    return json.dumps(document, separators=(",", ":")).encode()


def wanted(event_type: str, patterns: Iterable[str]) -> bool:
    """Whether one of the glob *patterns* takes the type, written whole or without its prefix."""
    short = event_type.removeprefix(TYPE_PREFIX)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in (event_type, short))


def signature(secret: str, event_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``, by the Standard Webhooks specification. secret: ``whsec_<base64>``."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((event_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _subject(row: AuditRow) -> str:
    """The model that the row is about, else its target."""
    for state in (row.after, row.before):
        if isinstance(state, dict) and isinstance(model := state.get("model"), str) and model:
            return model
    is_flag = ":" not in row.target and "." in row.target
    return row.target.rpartition(".")[0] if is_flag else row.target
