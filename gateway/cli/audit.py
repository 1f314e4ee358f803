"""``sluicegate audit``: take the audit trail away as a file, and check that nothing in it was touched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

PAGE_ROWS = 1000


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "audit",
        help="export the audit trail, and check it",
        description="Export the audit trail of all changes, and check that no row was changed, removed or moved.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    export = remote.add_verb(verbs, "export", "write the rows as JSON Lines, oldest first", _export)
    export.add_argument("--after", type=int, default=0, metavar="SEQ", help="only rows after this one (default: 0)")
    export.add_argument("--out", type=Path, metavar="FILE", help="write there instead of stdout")
    check = remote.add_verb(
        verbs,
        "verify",
        "check that no row was changed, removed, put in or moved",
        _verify,
        more="It checks the hash chain from its first row, the signed checkpoints, and that the flags in force are "
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


def _export(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        lines = (json.dumps(row, ensure_ascii=False) for row in read_rows(control, options.after))
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
    from gateway.cli.audit_verify import run  # it needs cryptography, which no other verb should wait for

    return run(options)


def read_rows(control: remote.Remote, after: int) -> Iterator[dict[str, Any]]:
    """All rows after one, oldest first, page by page."""
    while rows := control.get("/admin/v1/audit", after=after, limit=PAGE_ROWS)["rows"]:
        yield from rows
        after = rows[-1]["seq"]
