"""``sluicegate audit verify``: a server, an export or a state directory, against what was taken away before."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli import remote
from gateway.cli.audit import PAGE_ROWS, read_rows
from gateway.control import checkpoints
from gateway.control.checkpoints import Checkpoint, Keys
from gateway.control.trail import TrailCheck, Verified
from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Head, check_ending, from_json, verify
from gateway.flags.document import FlagDocument, parse
from gateway.flags.sqlite import SqliteStore


def run(options: argparse.Namespace) -> int:
    """Check, tell, and return the exit code. Raises AuditBroken naming the row."""
    if options.after and (options.export is None or options.file is not None):
        remote.usage("audit", "--after goes with --export, and without --file")
    if options.export is not None and options.checkpoints is not None and not options.public_key:
        remote.usage("audit", "--checkpoints of an export need the --public-key that they are signed with")
    exported = _exported(options.file) if options.file is not None else []
    if options.export is not None:
        found = _verify_export(options)
    elif options.state is not None:
        found = _verify_state(options)
    else:
        found = _verify_server(options)
    _compare(exported, found.rows, options.file)
    _tell(found, options)
    return 0


@dataclass(frozen=True, slots=True)
class _Found:
    """A trail that held. rows: in memory. document: the flags that it ends in, None where there were none to see."""

    verified: Verified
    rows: list[AuditRow]
    document: FlagDocument | None
    first: int = 1


def _verify_server(options: argparse.Namespace) -> _Found:
    with remote.connect(options) as control:
        # Checkpoints and flags first: rows that come in between are newer than they.
        told = control.get("/admin/v1/audit/checkpoints", limit=10_000)
        document = parse(control.get("/admin/v1/flags"))
        rows = [from_json(row) for row in read_rows(control, 0)]
    keys = _public_keys(options.public_key)
    if not options.public_key:
        for name, pem in told["public_keys"].items():
            key = checkpoints.public_key(pem.encode(), f"the server's key {name}")
            keys[checkpoints.key_id(key)] = key
    if options.checkpoints is not None:
        signed = _read_checkpoints(options.checkpoints)
    else:
        signed = [checkpoints.from_json(plain) for plain in told["checkpoints"]]
    verified = _checked(rows, signed, keys)
    check_ending([row for row in rows if row.revision <= document.revision], document)
    return _Found(verified, rows, document)


def _verify_state(options: argparse.Namespace) -> _Found:
    state: Path = options.state
    path = options.checkpoints or state / checkpoints.CHECKPOINT_FILE
    signed = _read_checkpoints(path) if options.checkpoints is not None or path.exists() else []
    try:
        keys = _public_keys(options.public_key) if options.public_key else checkpoints.public_keys_in(state)
    except OSError as error:
        raise remote.RemoteFailed(f"cannot read the public keys in {state}: {error.strerror}") from error
    database = state / "flags.sqlite"
    if not database.exists():
        raise remote.RemoteFailed(f"there is no {database}")
    store = SqliteStore(database, read_only=True)
    try:
        document = store.load() or FlagDocument()
        rows: list[AuditRow] = []
        while more := store.history(after=rows[-1].seq if rows else 0, limit=PAGE_ROWS):
            rows += more
    finally:
        store.close()
    verified = _checked(rows, signed, keys)
    check_ending([row for row in rows if row.revision <= document.revision], document)
    return _Found(verified, rows, document)


def _verify_export(options: argparse.Namespace) -> _Found:
    rows = _exported(options.export)
    start = GENESIS
    if options.after and rows:
        if rows[0].seq != options.after + 1:  # its prev is not the hash of the row before that
            raise AuditBroken(f"row {options.after + 1} is missing: the export begins with row {rows[0].seq}")
        start = Head(options.after, rows[0].prev)
    signed = _read_checkpoints(options.checkpoints) if options.checkpoints is not None else []
    verified = _checked(rows, signed, _public_keys(options.public_key), start)
    return _Found(verified, rows, None, first=options.after + 1)


def _checked(rows: list[AuditRow], signed: list[Checkpoint], keys: Keys, start: Head = GENESIS) -> Verified:
    check = TrailCheck(signed, keys, start)
    check.add(rows)
    return check.finish()


def _tell(found: _Found, options: argparse.Namespace) -> None:
    verified, document = found.verified, found.document
    if options.json:
        revision = None if document is None else document.revision
        remote.print_json({**verified.to_json(), "first": found.first, "flags_revision": revision})
        return
    rows = _counted(len(found.rows), "row") + ("" if found.first == 1 else f" from row {found.first} on")
    end = "" if document is None else f"; they end in the flags in force at revision {document.revision}"
    print(f"{rows}, none touched{end}")
    print(f"head: {verified.head.hash}")
    newest = verified.newest
    if newest is None:
        print("no checkpoint was at hand: rows cut off at the end, or a chain made anew, would not show")
        return
    whose = str(options.checkpoints or options.state or "the server itself")
    held = "holds" if verified.checkpoints == 1 else "hold"
    print(
        f"{_counted(verified.checkpoints, 'checkpoint')} of {whose} {held}, the newest of row {newest.seq}, {newest.ts}"
    )
    if options.checkpoints is None:
        print("a copy of them that was kept elsewhere (--checkpoints) proves more")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _compare(exported: list[AuditRow], rows: list[AuditRow], path: Path) -> None:
    kept: Head = verify(exported, GENESIS)
    if kept.seq > len(rows):
        raise AuditBroken(f"rows after {len(rows)} were cut off: {path} has {kept.seq}")
    if kept.seq and rows[kept.seq - 1].hash != kept.hash:
        raise AuditBroken(f"the chain was made anew: its row {kept.seq} is not the one in {path}")


def _exported(path: Path) -> list[AuditRow]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines(): a reason may hold other line ends
        return [from_json(json.loads(line)) for line in lines if line]
    except OSError as error:
        raise remote.RemoteFailed(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise AuditBroken(f"{path} is not what `audit export` wrote: {error}") from error


def _read_checkpoints(path: Path) -> list[Checkpoint]:
    try:
        return checkpoints.read_checkpoints(path)
    except OSError as error:
        raise remote.RemoteFailed(f"cannot read {path}: {error.strerror}") from error


def _public_keys(paths: list[Path]) -> dict[str, Any]:
    try:
        return {**checkpoints.read_public_keys(paths)}
    except OSError as error:
        raise remote.RemoteFailed(f"cannot read the public key {error.filename}: {error.strerror}") from error
