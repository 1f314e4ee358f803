"""``sluicegate token``: make, list and end the bearer tokens of the control plane."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_TOKENS = "/admin/v1/tokens"
# The control room's own list; it is not imported here, since that would start a web framework for a help text.
SCOPES = ("metrics", "viewer", "operator", "approver", "admin")


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "token",
        help="make, list and end bearer tokens",
        description="Make, list and end the bearer tokens of the control plane. Each scope may do what those before it "
        f"may: {', '.join(SCOPES)}.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a token; prints its secret, which is never shown again")
    create.add_argument("name", metavar="NAME", help="whose it is; the audit shows this name")
    create.add_argument(
        "--scope",
        required=True,
        choices=SCOPES,
        help="what it may do: scrape metrics, look, change flags, approve changes of others, make tokens",
    )
    listing = verbs.add_parser("list", help="list all tokens, without their secrets")
    revoke = verbs.add_parser("revoke", help="end a token for good")
    revoke.add_argument("id", metavar="ID", help="as `token list` shows it")
    for verb, run in ((create, _create), (listing, _list), (revoke, _revoke)):
        remote.add_options(verb)
        verb.set_defaults(run=run)


def _create(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        token = control.call("POST", _TOKENS, body={"name": options.name, "scope": options.scope}).json()
    if options.json:
        remote.print_json(token)
        return 0
    print(token["token"])
    note = f"token {token['id']} of {token['name']}, scope {token['scope']}; keep it: it is not shown again"
    print(note, file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        tokens = control.get(_TOKENS)["tokens"]
    if options.json:
        remote.print_json(tokens)
        return 0
    columns: dict[str, dict[str, Any]] = {"id": {}, "name": {}, "scope": {}, "created": {}, "revoked": {}}
    rows = [(t["id"], t["name"], t["scope"], _when(t["created_s"]), _when(t["revoked_s"])) for t in tokens]
    remote.print_table("tokens", columns, rows)
    return 0


def _revoke(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        control.call("DELETE", f"{_TOKENS}/{quote(options.id, safe='')}")
    if options.json:
        remote.print_json({"id": options.id, "revoked": True})
    else:
        print(f"token {options.id} is revoked")
    return 0


def _when(moment_s: float | None) -> str:
    return "" if moment_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s))
