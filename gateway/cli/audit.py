"""``sluicegate audit``: take the audit trail away as a file, and check that nothing in it was touched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import remote
from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Head, check_ending, from_json, verify
from gateway.flags.document import parse

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
        help="check the hash chain, and that the flags in force are what it ends in",
        description="Check the hash chain from its first row, and that the flags in force are what it ends in. With "
        "--file, also that the server's rows are those that were exported: only that finds rows cut off at the end, "
        "or a chain made anew.",
    )
    check.add_argument("--file", type=Path, metavar="FILE", help="an earlier whole export to compare with")
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
    exported = _exported(options.file) if options.file is not None else []
    with remote.connect(options) as control:
        # The flags first: rows that come in between are newer than they and are left out of the comparison.
        document = parse(control.get("/admin/v1/flags"))
        rows = [from_json(row) for row in _rows(control, 0)]
    head = verify(rows)
    check_ending([row for row in rows if row.revision <= document.revision], document)
    _compare(exported, rows, options.file)
    if options.json:
        remote.print_json({"rows": head.seq, "head": head.hash, "flags_revision": document.revision})
    else:
        print(f"{head.seq} rows, none touched; they end in the flags in force at revision {document.revision}")
        print(f"head: {head.hash}")
    return 0


def _compare(exported: list[AuditRow], rows: list[AuditRow], path: Path) -> None:
    kept: Head = verify(exported, GENESIS)
    if kept.seq > len(rows):
        raise AuditBroken(f"rows after {len(rows)} were cut off: {path} has {kept.seq}")
    if kept.seq and rows[kept.seq - 1].hash != kept.hash:
        raise AuditBroken(f"the chain was made anew: its row {kept.seq} is not the one in {path}")


def _exported(path: Path) -> list[AuditRow]:
    try:
        return [from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise remote.RemoteFailed(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise AuditBroken(f"{path} is not what `audit export` wrote: {error}") from error


def _rows(control: remote.Remote, after: int) -> Iterator[dict[str, Any]]:
    while rows := control.get("/admin/v1/audit", after=after, limit=_PAGE_ROWS)["rows"]:
        yield from rows
        after = rows[-1]["seq"]
