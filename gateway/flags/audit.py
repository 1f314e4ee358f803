"""The audit trail: one row per change, each bound to the one before it by a hash over all its fields."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.errors import AuditBroken
from gateway.flags.document import FlagDocument, dump_flag

SCHEMA = 1
DOCUMENT_TARGET = "document"  # target of changes to what all flags share: bucketing, named rules, metadata
_DOMAIN = b"sluicegate audit row\n"  # so that no other hash of this project can pass for a row's


@dataclass(frozen=True, slots=True)
class Author:
    """Who asked for a change. ip and request_id: of the request that carried it, empty if none did."""

    actor: str
    token_id: str = ""
    ip: str = ""
    request_id: str = ""


SYSTEM = Author("system")


@dataclass(frozen=True, slots=True)
class Head:
    """The last row of a chain; enough to tell later whether rows before it were touched or cut off."""

    seq: int
    hash: str


GENESIS = Head(0, "0" * 64)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row. seq counts from 1 without gaps; prev is the hash of row seq - 1.

    ts: UTC. target: the flag's key, or what else was changed. revision: of the flag document after the change.
    before, after: the target as flagd JSON; None where it did not exist.
    """

    seq: int
    prev: str
    ts: str
    actor: str
    token_id: str
    ip: str
    request_id: str
    verb: str
    target: str
    revision: int
    before: Any
    after: Any
    reason: str
    hash: str = ""

    def canonical(self) -> str:
        """All fields but the hash, as the one JSON text that the hash is made of."""
        fields = {"v": SCHEMA, **dataclasses.asdict(self)}
        del fields["hash"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def sealed(self) -> AuditRow:
        """The row with its hash."""
        return dataclasses.replace(self, hash=digest(self.canonical()))

    def to_json(self) -> dict[str, Any]:
        """The row as JSON can say it; `from_json` reads it back."""
        return {"v": SCHEMA, **dataclasses.asdict(self)}


def next_row(
    head: Head,
    author: Author,
    *,
    now_s: float,
    verb: str,
    target: str,
    revision: int,
    before: Any,
    after: Any,
    reason: str,
) -> AuditRow:
    """The sealed row that follows *head*. now_s: unix seconds."""
    return AuditRow(
        seq=head.seq + 1,
        prev=head.hash,
        ts=datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        actor=author.actor,
        token_id=author.token_id,
        ip=author.ip,
        request_id=author.request_id,
        verb=verb,
        target=target,
        revision=revision,
        before=before,
        after=after,
        reason=reason,
    ).sealed()


def from_json(plain: Mapping[str, Any]) -> AuditRow:
    """Read a row. Raises AuditBroken if it has not exactly the fields of one."""
    fields = {f.name for f in dataclasses.fields(AuditRow)}
    if not isinstance(plain, Mapping) or set(plain) != fields | {"v"} or plain["v"] != SCHEMA:
        shown = plain.get("seq", "?") if isinstance(plain, Mapping) else "?"
        raise AuditBroken(f"row {shown} has not the fields of an audit row of schema {SCHEMA}")
    return AuditRow(**{name: plain[name] for name in fields})


def verify(rows: Iterable[AuditRow], start: Head = GENESIS) -> Head:
    """Check that *rows* follow *start* without a gap and that nothing in them was touched; return the new head.

    Finds any edit, deletion, insertion and change of order. That the newest rows were cut off, or that the whole chain
    was computed anew, only shows against a head that was noted elsewhere. Raises AuditBroken naming the row.
    """
    head = start
    for row in rows:
        if row.seq > head.seq + 1:
            raise AuditBroken(f"row {head.seq + 1} is missing: the next one is {row.seq}")
        if row.seq != head.seq + 1:
            raise AuditBroken(f"row {row.seq} stands where row {head.seq + 1} is missing: it was put in or moved")
        if row.prev != head.hash:
            raise AuditBroken(
                f"row {row.seq} does not follow row {head.seq}: its prev is {row.prev}, that row's hash is {head.hash}"
            )
        if row.hash != (expected := digest(row.canonical())):
            raise AuditBroken(f"row {row.seq} was changed: its fields give the hash {expected}, it has {row.hash}")
        head = Head(row.seq, row.hash)
    return head


def targets_of(document: FlagDocument) -> dict[str, Any]:
    """The parts of a document that have their own audit rows, as the rows hold them."""
    parts: dict[str, Any] = {key: dump_flag(flag) for key, flag in document.flags.items()}
    if document.metadata or document.evaluators:
        parts[DOCUMENT_TARGET] = {"metadata": dict(document.metadata), "$evaluators": dict(document.evaluators)}
    return parts


def check_ending(rows: Iterable[AuditRow], document: FlagDocument) -> None:
    """Check that *document* is what a whole trail of *rows* leaves behind. Raises AuditBroken naming the part."""
    in_force = targets_of(document)
    written = {row.target: row.after for row in rows}
    for target, found in in_force.items():
        if written.get(target) != found:
            raise AuditBroken(f"{target} is not what the audit trail says was written last")
    for target, after in written.items():
        is_flag = "." in target and ":" not in target
        if is_flag and after is not None and target not in in_force:
            raise AuditBroken(f"{target} is gone, but the audit trail does not say that it was deleted")


def digest(canonical: str) -> str:
    """The hash of a row's canonical text, in hex."""
    return hashlib.sha256(_DOMAIN + canonical.encode("utf-8", "surrogatepass")).hexdigest()
