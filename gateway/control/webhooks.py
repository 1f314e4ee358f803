"""The webhooks that were asked for: who is told of what, and the secrets that sign it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gateway.control.events import SECRET_PREFIX
from gateway.control.outbox import newest_seq
from gateway.errors import ChangeRefused, InvalidInput, StoreUnavailable, UnknownWebhook
from gateway.flags.audit import SYSTEM, Author
from gateway.flags.lastgood import replace_file
from gateway.flags.store import FlagStore, Note, Record, RecordWrite

KIND = "webhook"
CURSOR = "cursor"
# Each has a connection and a task of its own, so this bounds them too.
MAX_WEBHOOKS = 50
MAX_PATTERNS = 32
MAX_URL_CHARACTERS = 2000
MAX_DESCRIPTION_CHARACTERS = 200
_PATTERN = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Webhook:
    """One receiver. events: glob patterns of event types. created_s: unix seconds.

    fingerprint: SHA-256 of the secret, to tell that the key it is made from was lost. disabled: why nothing is sent to
    it any more; empty while it is told.
    """

    id: str
    url: str
    events: tuple[str, ...]
    description: str
    created_s: float
    fingerprint: str
    disabled: str = ""

    @property
    def place(self) -> str:
        """Where it is, without what may be a capability: logs, audit rows and viewers get no more of the URL."""
        return origin(self.url)

    @property
    def target(self) -> str:
        """Its name in audit rows."""
        return f"{KIND}:{self.id}"

    def to_json(self, *, whole_url: bool) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": self.url if whole_url else self.place,
            "events": list(self.events),
            "description": self.description,
            "created_s": self.created_s,
            "disabled": self.disabled,
        }


class WebhookList:
    """The webhooks in the store, with the secrets of `WebhookKey`. Methods block, and raise StoreUnavailable."""

    def __init__(self, store: FlagStore, key: WebhookKey, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()

    def all(self) -> list[Webhook]:
        """All webhooks, by id."""
        return [_from_record(record) for record in self._store.records(KIND)]

    def find(self, webhook_id: str) -> Webhook:
        """One webhook. Raises UnknownWebhook."""
        record = self._store.record(KIND, webhook_id)
        if record is None:
            raise UnknownWebhook(f"no webhook {webhook_id!r}")
        return _from_record(record)

    def add(self, body: Mapping[str, Any], *, author: Author, reason: str) -> tuple[Webhook, str]:
        """A new webhook and its secret, which is never shown again. Raises InvalidInput, ChangeRefused.

        It is told of all that is written from now on, its own making first.
        """
        url, events, description = _checked(body)
        with self._lock:  # two at a time would each make a key, and be one too many
            return self._add(url, events, description, author=author, reason=reason)

    def _add(
        self, url: str, events: tuple[str, ...], description: str, *, author: Author, reason: str
    ) -> tuple[Webhook, str]:
        if len(self._store.records(KIND)) >= MAX_WEBHOOKS:
            raise ChangeRefused(f"there are {MAX_WEBHOOKS} webhooks already: remove one first")
        webhook_id = secrets.token_hex(4)
        secret = self._key.new_secret(webhook_id)
        webhook = Webhook(webhook_id, url, events, description, self._clock(), _fingerprint(secret))
        self._store.commit(
            author=author,
            verb="webhook.create",
            reason=reason,
            records=[
                RecordWrite(KIND, webhook_id, _to_body(webhook), expected_revision=0),
                RecordWrite(CURSOR, webhook.target, {"seq": newest_seq(self._store)}, expected_revision=0),
            ],
            notes=[Note("webhook.create", webhook.target, after=webhook.to_json(whole_url=False))],
        )
        return webhook, secret

    def remove(self, webhook_id: str, *, author: Author, reason: str) -> Webhook:
        """Forget a webhook, and how far it was told. Raises UnknownWebhook."""
        webhook = self.find(webhook_id)
        self._store.commit(
            author=author,
            verb="webhook.delete",
            reason=reason,
            records=[RecordWrite(KIND, webhook_id, None), RecordWrite(CURSOR, webhook.target, None)],
            notes=[Note("webhook.delete", webhook.target, before=webhook.to_json(whole_url=False))],
        )
        return webhook

    def disable(self, webhook: Webhook, why: str) -> None:
        """Send it nothing more until `enable`. One that was removed meanwhile stays so."""
        noted = Note("alarm.webhook_disabled", webhook.target, after={"url": webhook.place, "why": why})
        self._rewrite(webhook.id, why, noted, author=SYSTEM, reason=f"the receiver at {webhook.place}: {why}")

    def enable(self, webhook: Webhook, *, author: Author) -> None:
        """Go on where a disabled webhook stopped."""
        noted = Note("webhook.enable", webhook.target, after={"url": webhook.place})
        self._rewrite(webhook.id, "", noted, author=author, reason="its receiver took a test event")

    def secret(self, webhook: Webhook) -> str:
        """What signs its events. Raises StoreUnavailable if the key that it was made from is gone."""
        secret = self._key.secret(webhook.id)
        if not hmac.compare_digest(_fingerprint(secret), webhook.fingerprint):
            raise StoreUnavailable(
                f"the key that the secret of webhook {webhook.id} was made from is not the one in {self._key.path.name}"
                f" any more: put it back, or remove the webhook and add it anew"
            )
        return secret

    def _rewrite(self, webhook_id: str, disabled: str, noted: Note, *, author: Author, reason: str) -> None:
        record = self._store.record(KIND, webhook_id)
        if record is None:
            return
        changed = dataclasses.replace(_from_record(record), disabled=disabled)
        self._store.commit(
            author=author,
            verb=noted.verb,
            reason=reason,
            records=[RecordWrite(KIND, webhook_id, _to_body(changed), expected_revision=record.revision)],
            notes=[noted],
        )


class WebhookKey:
    """One random key in a file for its owner only, from which every webhook's secret follows.

    So no secret is kept anywhere, least of all in the store, whose copies travel. Methods block, and raise
    StoreUnavailable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def new_secret(self, webhook_id: str) -> str:
        """As `secret`, but makes the key if there is none yet."""
        if not self.path.exists():
            try:
                replace_file(self.path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
            except OSError as error:
                raise StoreUnavailable(f"{self.path} cannot be written: {error.strerror}") from error
        return self.secret(webhook_id)

    def secret(self, webhook_id: str) -> str:
        """``whsec_<base64 of 32 bytes>``."""
        try:
            key = self.path.read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be read: {error.strerror}") from error
        if len(key) != _KEY_BYTES:
            raise StoreUnavailable(f"{self.path} has {len(key)} bytes, expected {_KEY_BYTES}")
        made = hmac.digest(key, b"sluicegate webhook secret\n" + webhook_id.encode(), hashlib.sha256)
        return SECRET_PREFIX + base64.b64encode(made).decode()


def origin(url: str) -> str:
    """Scheme, host and port of a URL, with an ellipsis for the rest of it."""
    parts = urlsplit(url)
    rest = "/..." if parts.path not in ("", "/") or parts.query else parts.path
    return f"{parts.scheme}://{parts.netloc}{rest}"


def _checked(body: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """URL, patterns and description of a new webhook. Raises InvalidInput."""
    for name in sorted(body.keys() - {"url", "events", "description"}):
        raise InvalidInput(name, "an unknown field", "only url, events and description")
    description = body.get("description", "")
    if (
        not isinstance(description, str)
        or len(description) > MAX_DESCRIPTION_CHARACTERS
        or not description.isprintable()
    ):
        raise InvalidInput(
            "description", repr(description)[:80], f"one line of at most {MAX_DESCRIPTION_CHARACTERS} characters"
        )
    return checked_url(body.get("url")), _checked_patterns(body.get("events", ["*"])), description


def checked_url(url: Any) -> str:
    """*url*, if a receiver may be named so. Raises InvalidInput."""
    expected = "an http or https URL with a host, without user, password and fragment"
    if not isinstance(url, str) or not _VISIBLE.fullmatch(url) or len(url) > MAX_URL_CHARACTERS:
        raise InvalidInput("url", "something else", f"{expected}, at most {MAX_URL_CHARACTERS} ASCII characters")
    try:
        parts = urlsplit(url)
        usable = _is_usable(parts)
    except ValueError:  # a port that is no number, a bracket that is not closed
        usable = False
    if not usable:  # what came is not repeated: it may hold a password
        raise InvalidInput("url", "something else", expected)
    return url


def _is_usable(parts: SplitResult) -> bool:
    plain = "@" not in parts.netloc and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and plain


def _checked_patterns(events: Any) -> tuple[str, ...]:
    if not isinstance(events, Sequence) or isinstance(events, str) or not 1 <= len(events) <= MAX_PATTERNS:
        raise InvalidInput("events", repr(events)[:80], f"a list of 1 to {MAX_PATTERNS} glob patterns, as rollout.*")
    for pattern in events:
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            raise InvalidInput(
                "events", repr(pattern)[:80], f"text matching {_PATTERN.pattern}, as rollout.* or alarm.*"
            )
    return tuple(events)


def _from_record(record: Record) -> Webhook:
    body = record.body
    return Webhook(**{**body, "id": record.id, "events": tuple(body["events"])})


def _to_body(webhook: Webhook) -> dict[str, Any]:
    plain = dataclasses.asdict(webhook)
    del plain["id"]
    return {**plain, "events": list(webhook.events)}


def _fingerprint(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
