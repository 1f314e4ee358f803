"""``sluicegate changes``: what waits for approval, and the answers to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_CHANGES = "/admin/v1/changes"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "changes",
        help="see and approve changes of models with high stakes",
        description="Changes that raise the exposure of a model whose card says stakes = high wait here until somebody "
        "else than their author has approved them.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = remote.add_verb(verbs, "list", "list what waits, newest first", _list)
    listing.add_argument("--all", action="store_true", help="and what is over")
    texts = {
        "show": "show one change and what differs",
        "approve": "agree to a change; the last approval applies it",
        "reject": "refuse a change, or withdraw one's own",
        "apply": "apply a change that was approved while a version was not warm",
        "acknowledge": "say that a change by break-glass was reviewed",
    }
    for name, text in texts.items():
        verb = remote.add_verb(verbs, name, text, _show if name == "show" else _decide)
        verb.add_argument("id", metavar="ID", help="as `changes list` shows it")
        if name in ("approve", "reject", "acknowledge"):
            verb.add_argument("--reason", required=name != "approve", default="", help="why; recorded in the audit")
        verb.set_defaults(verb=name)


def print_waiting(change: Mapping[str, Any]) -> None:
    """What to say of a change that was not made, but proposed."""
    people = remote.people(change["required"])
    print(
        f"{change['target']} is not changed yet: change {change['id']} waits for {people} to approve it until "
        f"{remote.moment(change['expires_s'])} (`sluicegate changes approve {change['id']}`)"
    )


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        changes = control.get(_CHANGES)["changes"]
    if not options.all:
        changes = [each for each in changes if each["state"] in ("open", "approved", "break_glass")]
    if options.json:
        remote.print_json(changes)
        return 0
    if not changes:
        print("no change was ever proposed" if options.all else "no change waits for approval or review")
        return 0
    columns: dict[str, dict[str, Any]] = {
        "id": {"no_wrap": True},
        "what": {},
        "state": {},
        "approved by": {},
        "author": {},
        "reason": {},
        "until": {"no_wrap": True},
    }
    rows = [
        (each["id"], each["target"], each["state"], _approved(each), each["actor"], each["reason"], _until(each))
        for each in changes
    ]
    remote.print_table("changes" if options.all else "changes that wait", columns, rows)
    return 0


def _show(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        change = control.get(_path(options.id))
    if options.json:
        remote.print_json(change)
    else:
        _print(change)
    return 0


def _decide(options: argparse.Namespace) -> int:
    headers = {"x-change-reason": options.reason} if getattr(options, "reason", "") else {}
    with remote.connect(options) as control:
        query: dict[str, str | int] = {}
        if options.verb == "approve":  # what is approved is what is shown below, and nothing that came in between
            query["digest"] = control.get(_path(options.id))["digest"]
        reply = control.call("POST", f"{_path(options.id)}:{options.verb}", headers=headers, query=query)
    change = reply.json()
    if options.json:
        remote.print_json(change)
    else:
        _print(change)
    return 0


def _print(change: Mapping[str, Any]) -> None:
    why = f": {change['state_reason']}" if change["state_reason"] else ""
    print(f"change {change['id']} of {change['target']} is {change['state']}{why}")
    print(f"based on revision {change['based_on']} of it")
    print(f"author   {change['actor']}: {change['reason']}")
    print(f"approved {_approved(change)}")
    print(f"until    {remote.moment(change['expires_s'])}")
    for difference in change["diff"]:
        print(f"  {remote.difference(difference)}")


def _approved(change: Mapping[str, Any]) -> str:
    who = [each["actor"] for each in change["approvals"]]
    return " ".join([f"{len(who)} of {change['required']}", *who])


def _until(change: Mapping[str, Any]) -> str:
    return remote.moment(change["expires_s"]) if change["state"] in ("open", "approved") else ""


def _path(change_id: str) -> str:
    return f"{_CHANGES}/{quote(change_id, safe='')}"
