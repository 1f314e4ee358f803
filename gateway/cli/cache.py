"""``sluicegate cache``: have the workers forget cached answers of a model while it stays served."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "cache",
        help="forget cached answers",
        description="Forget cached answers of a model in every worker, while it stays served.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    text = "forget the answers of a model, or of one version, in every worker"
    purge = remote.add_verb(verbs, "purge", text, _purge)
    purge.add_argument("model", metavar="MODEL", help="the model's name")
    purge.add_argument("--version", metavar="V", help="only this version's answers (default: all)")
    purge.add_argument("--reason", required=True, help="why; recorded in the audit")


def _purge(options: argparse.Namespace) -> int:
    body = {} if options.version is None else {"version": options.version}
    path = f"/admin/v1/models/{quote(options.model, safe='')}/cache:purge"
    with remote.connect(options) as control:
        found = control.call("POST", path, body=body, headers={"x-change-reason": options.reason}).json()
    if options.json:
        remote.print_json(found)
    else:
        which = "all answers" if found["version"] is None else f"the answers of version {found['version']}"
        print(f"{which} of {found['model']} are forgotten as of revision {found['revision']}")
    return 0
