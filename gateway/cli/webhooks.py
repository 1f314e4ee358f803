"""``sluicegate webhooks``: say who is told of rollouts, flag changes and alarms, and see whether they are."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_WEBHOOKS = "/admin/v1/webhooks"


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "webhooks",
        help="tell other systems of rollouts, flag changes and alarms",
        description="Tell other systems of rollouts, flag changes and alarms: each is sent as a signed CloudEvent, "
        "again and again until the receiver takes it.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    text = "make a webhook; prints its signing secret, which is never shown again"
    add = remote.add_verb(verbs, "add", text, _add)
    add.add_argument("target", metavar="RECEIVER", help="where to send events: an http or https URL")
    add.add_argument(
        "--events",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="which types of events, as rollout.* or 'alarm.*' (default: all)",
    )
    add.add_argument("--description", default="", metavar="TEXT", help="whose it is, or what for")
    remote.add_verb(verbs, "list", "list all webhooks and how far each was told, without their secrets", _list)
    more = "If it is taken, a webhook that was disabled is enabled again, and one that waits after failures goes on."
    test = remote.add_verb(verbs, "test", "send a test event now", _test, more=more)
    remove = remote.add_verb(verbs, "remove", "end a webhook", _remove)
    for verb in (test, remove):
        verb.add_argument("id", metavar="ID", help="as `webhooks list` shows it")


def _add(options: argparse.Namespace) -> int:
    body = {"url": options.target, "events": options.events, "description": options.description}
    with remote.connect(options) as control:
        made = control.call("POST", _WEBHOOKS, body=body).json()
    if options.json:
        remote.print_json(made)
        return 0
    print(made["secret"])
    print(f"webhook {made['id']}; keep the secret for its receiver: it is not shown again", file=sys.stderr)
    return 0


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        webhooks = control.get(_WEBHOOKS)["webhooks"]
    if options.json:
        remote.print_json(webhooks)
        return 0
    if not webhooks:
        print("no webhooks; `sluicegate webhooks add URL` makes one")
        return 0
    columns: dict[str, dict[str, Any]] = {
        "id": {},
        "receiver": {"overflow": "fold"},
        "events": {"overflow": "fold"},
        "last success": {},
        "behind": {"justify": "right"},
        "state": {"overflow": "fold"},
        "description": {"overflow": "fold"},
    }
    remote.print_table("webhooks", columns, [_row(webhook) for webhook in webhooks])
    return 0


def _test(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        tried = control.call("POST", f"{_WEBHOOKS}/{quote(options.id, safe='')}:test").json()
    if options.json:
        remote.print_json(tried)
    elif tried["delivered"]:
        print(f"delivered: the receiver answered {tried['status']}")
    if not tried["delivered"]:
        raise remote.RemoteFailed(f"not delivered: {tried['why']}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        control.call("DELETE", f"{_WEBHOOKS}/{quote(options.id, safe='')}")
    if options.json:
        remote.print_json({"id": options.id, "removed": True})
    else:
        print(f"webhook {options.id} is removed")
    return 0


def _row(webhook: dict[str, Any]) -> tuple[str, ...]:
    progress = webhook["progress"]
    state = "ok" if progress["last_success_s"] is not None else "nothing sent yet"
    if webhook["disabled"]:
        state = f"disabled: {webhook['disabled']}"
    elif progress["failures"]:
        state = f"{progress['failures']} failures in a row: {progress['last_error']}"
    if progress["given_up"]:
        state += f"; {progress['given_up']} events given up"
    return (
        webhook["id"],
        webhook["url"],
        " ".join(webhook["events"]),
        remote.moment(progress["last_success_s"]),
        f"{progress['lag_rows']} rows",
        state,
        webhook["description"],
    )
