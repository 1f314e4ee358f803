"""``sluicegate models quarantine``: what workers died of and no longer load, and lifting that."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_PATH = "/admin/v1/quarantine"
_DIGEST_CHARACTERS = 12


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "quarantine",
        help="list what workers died of and no longer load, or lift it",
        description="Versions that were in flight at two deaths of workers within a minute, and are not loaded again "
        "until their package is another or they are lifted.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    remote.add_verb(verbs, "list", "list what is quarantined, and why", _list)
    lift = remote.add_verb(verbs, "lift", "let the workers load a version again", _lift)
    lift.add_argument("model", metavar="MODEL", help="as `models quarantine list` shows it")
    lift.add_argument("version", metavar="VERSION")
    lift.add_argument("--reason", required=True, help="why; recorded in the audit")


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        found = control.get(_PATH)
    if options.json:
        remote.print_json(found)
    elif not found["versions"]:
        print("nothing is quarantined")
    else:
        columns = {heading: {"overflow": "fold"} for heading in ("model", "version", "digest", "since", "reason")}
        rows = [
            (each["model"], each["version"], each["digest"][:_DIGEST_CHARACTERS], each["ts"], each["reason"])
            for each in found["versions"]
        ]
        remote.print_table("quarantined versions", columns, rows)
    return 0


def _lift(options: argparse.Namespace) -> int:
    path = f"{_PATH}/{quote(options.model, safe='')}/{quote(options.version, safe='')}"
    with remote.connect(options) as control:
        found = control.call("DELETE", path, headers={"x-change-reason": options.reason}).json()
    if options.json:
        remote.print_json(found)
    else:
        print(f"{options.model} {options.version} is lifted: the workers load it again")
    return 0
