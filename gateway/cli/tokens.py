"""``sluicegate token``: make, list and end the bearer tokens of the control plane."""

from __future__ import annotations

import argparse
import sys
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
    text = "make a token; prints its secret, which is never shown again"
    create = remote.add_verb(verbs, "create", text, _create)
    create.add_argument("name", metavar="NAME", help="whose it is; the audit shows this name")
    create.add_argument(
        "--scope",
        required=True,
        choices=SCOPES,
        help="what it may do: scrape metrics, look, change flags, approve changes of others, make tokens",
    )
    remote.add_verb(verbs, "list", "list all tokens, without their secrets", _list)
    revoke = remote.add_verb(verbs, "revoke", "end a token for good", _revoke)
    revoke.add_argument("id", metavar="ID", help="as `token list` shows it")


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
    rows = [
        (t["id"], t["name"], t["scope"], remote.moment(t["created_s"]), remote.moment(t["revoked_s"])) for t in tokens
    ]
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
