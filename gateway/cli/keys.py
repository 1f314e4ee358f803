"""``sluicegate keys``: make, list, rotate and end the API keys of the data plane."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_KEYS = "/admin/v1/keys"
_DURATION = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "keys",
        help="make, list and end API keys for predictions",
        description="Make, list, rotate and end the API keys of the data plane. Workers ask for one while the setting "
        "server.api_keys is required.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    create = remote.add_verb(verbs, "create", "make a key; prints it, and it is never shown again", _create)
    create.add_argument("name", metavar="NAME", help="whose it is; the audit shows this name")
    create.add_argument("--model", action="append", metavar="MODEL", help="good for this model only; may be repeated")
    create.add_argument("--rate", type=float, metavar="N", help="requests per second that each worker admits")
    create.add_argument("--burst", type=int, metavar="N", help="how many at once after a pause (default: a second's)")
    create.add_argument("--expires-in", type=_duration, metavar="TIME", help="how long it is good, as 12h or 90d")
    text = "the highest that its requests may claim (default: normal)"
    create.add_argument("--priority", choices=("normal", "critical"), help=text)
    remote.add_verb(verbs, "list", "list all keys, without what could be used", _list)
    text = "make a key in the place of another; prints the new one"
    rotate = remote.add_verb(verbs, "rotate", text, _rotate)
    rotate.add_argument(
        "--grace", type=_duration, required=True, metavar="TIME", help="how long the old key stays good, as 0s or 1d"
    )
    revoke = remote.add_verb(verbs, "revoke", "end a key for good", _revoke)
    for verb in (rotate, revoke):
        verb.add_argument("id", metavar="ID", help="as `keys list` shows it")
    for verb in (create, rotate, revoke):
        verb.add_argument("--reason", default="", metavar="TEXT", help="for the audit")


def _create(options: argparse.Namespace) -> int:
    wanted = {
        "models": options.model,
        "rate_per_s": options.rate,
        "burst": options.burst,
        "expires_in_s": options.expires_in,
        "priority": options.priority,
    }
    body = {"name": options.name, **{name: value for name, value in wanted.items() if value is not None}}
    with remote.connect(options) as control:
        made = control.call("POST", _KEYS, body=body, headers=_why(options)).json()
    return _show(options, made)


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        keys = control.get(_KEYS)["keys"]
    if options.json:
        remote.print_json(keys)
        return 0
    if not keys:
        print("no keys; `sluicegate keys create NAME` makes one")
        return 0
    columns: dict[str, dict[str, Any]] = {
        "id": {},
        "name": {},
        "models": {"overflow": "fold"},
        "per second and worker": {"justify": "right"},
        "burst": {"justify": "right"},
        "priority": {},
        "created": {},
        "expires": {},
    }
    remote.print_table("API keys", columns, [_row(key) for key in keys])
    return 0


def _rotate(options: argparse.Namespace) -> int:
    body = {"grace_s": options.grace}
    with remote.connect(options) as control:
        path = f"{_KEYS}/{quote(options.id, safe='')}:rotate"
        made = control.call("POST", path, body=body, headers=_why(options)).json()
    return _show(options, made)


def _revoke(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        control.call("DELETE", f"{_KEYS}/{quote(options.id, safe='')}", headers=_why(options))
    if options.json:
        remote.print_json({"id": options.id, "revoked": True})
    else:
        print(f"key {options.id} is revoked")
    return 0


def _show(options: argparse.Namespace, made: dict[str, Any]) -> int:
    if options.json:
        remote.print_json(made)
        return 0
    print(made["key"])
    models = "all models" if made["models"] is None else ", ".join(made["models"])
    note = f"key {made['id']} of {made['name']}, for {models}; keep it: it is not shown again"
    if "replaces" in made:
        note += f"; key {made['replaces']['id']} is good until {remote.moment(made['replaces']['expires_s'])}"
    print(note, file=sys.stderr)
    return 0


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    expires = remote.moment(key["expires_s"])
    if key["expires_s"] is not None and key["expires_s"] <= time.time():
        expires += " (expired)"
    return (
        key["id"],
        key["name"],
        "all" if key["models"] is None else " ".join(key["models"]),
        "" if key["rate_per_s"] is None else f"{key['rate_per_s']:g}",
        "" if key["burst"] is None else str(key["burst"]),
        key["priority"],
        remote.moment(key["created_s"]),
        expires,
    )


def _why(options: argparse.Namespace) -> dict[str, str]:
    return {"x-change-reason": options.reason} if options.reason else {}


def _duration(text: str) -> int:
    """Seconds from 30s, 5m, 12h or 90d."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30s, 5m, 12h or 90d")
    return int(found[1]) * _UNIT_S[found[2]]
