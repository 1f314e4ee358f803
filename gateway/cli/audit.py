"""``sluicegate audit``: take the audit trail away as a file, and check that nothing in it was touched."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import remote
from gateway.control import checkpoints
from gateway.control.checkpoints import Checkpoint, Keys
from gateway.control.trail import TrailCheck, Verified
from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Head, check_ending, from_json, verify
from gateway.flags.document import FlagDocument, parse
from gateway.flags.sqlite import SqliteStore

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_PAGE_ROWS = 1000


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "audit",
        help="export the audit trail, and check it",
        description="Export the audit trail of all changes, and check that no row was changed, removed or moved.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    export = verbs.add_parser("export", help="write the rows as JSON Lines, oldest first")
    export.add_argument("--after", type=int, default=0, metavar="SEQ", help="only rows after this one (default: 0)")
    export.add_argument("--out", type=Path, metavar="FILE", help="write there instead of stdout")
    check = verbs.add_parser(
        "verify",
        help="check that no row was changed, removed, put in or moved",
        description="Check the hash chain from its first row, the signed checkpoints, and that the flags in force are "
        "what the trail ends in; of the server, of a whole export, or of a state directory. Rows that were cut off at "
        "the end, and a chain made anew, only show against checkpoints or an export that were taken away before.",
    )
    add = check.add_argument
    source = check.add_mutually_exclusive_group()
    source.add_argument("--export", type=Path, metavar="FILE", help="check this export; no server is asked")
    source.add_argument("--state", type=Path, metavar="DIR", help="check flags.sqlite in this state directory")
    add("--after", type=int, default=0, metavar="SEQ", help="the export begins after this row (default: 0)")
    add("--checkpoints", type=Path, metavar="FILE", help="signed checkpoints, as [audit] checkpoint_file collects them")
    add(
        "--public-key",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="who signed them, audit.pub; may be given again (default: what the server or DIR says)",
    )
    add("--file", type=Path, metavar="FILE", help="an earlier whole export that the rows must go on from")
    for verb, run in ((export, _export), (check, _verify)):
        remote.add_options(verb)
        verb.set_defaults(run=run)


def _export(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        lines = (json.dumps(row, ensure_ascii=False) for row in _rows(control, options.after))
        if options.out is None:
            for line in lines:
                print(line)
            return 0
        try:
            with options.out.open("w", encoding="utf-8") as file:
                count = sum(1 for line in lines if file.write(f"{line}\n"))
        except OSError as error:
            raise remote.RemoteFailed(f"cannot write {options.out}: {error.strerror}") from error
    if options.json:
        remote.print_json({"rows": count, "file": str(options.out)})
    else:
        print(f"{count} rows in {options.out}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.after and (options.export is None or options.file is not None):
        _usage("--after goes with --export, and without --file")
    if options.export is not None and options.checkpoints is not None and not options.public_key:
        _usage("--checkpoints of an export need the --public-key that they are signed with")
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
        rows = [from_json(row) for row in _rows(control, 0)]
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
        while more := store.history(after=rows[-1].seq if rows else 0, limit=_PAGE_ROWS):
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
    rows = f"{len(found.rows)} rows" if found.first == 1 else f"{len(found.rows)} rows from row {found.first} on"
    end = "" if document is None else f"; they end in the flags in force at revision {document.revision}"
    print(f"{rows}, none touched{end}")
    print(f"head: {verified.head.hash}")
    newest = verified.newest
    if newest is None:
        print("no checkpoint was at hand: rows cut off at the end, or a chain made anew, would not show")
        return
    whose = str(options.checkpoints or options.state or "the server itself")
    print(f"{verified.checkpoints} checkpoints of {whose} hold, the newest of row {newest.seq}, {newest.ts}")
    if options.checkpoints is None:
        print("a copy of them that was kept elsewhere (--checkpoints) proves more")


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


def _rows(control: remote.Remote, after: int) -> Iterator[dict[str, Any]]:
    while rows := control.get("/admin/v1/audit", after=after, limit=_PAGE_ROWS)["rows"]:
        yield from rows
        after = rows[-1]["seq"]


def _usage(message: str) -> None:
    print(f"sluicegate audit: {message}", file=sys.stderr)
    raise SystemExit(2)
