"""``sluicegate flags``: look at the flags, shift traffic, flip blue and green, pull the kill switch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote
from gateway.cli.changes import print_waiting
from gateway.cli.dry_run import print_dry_run
from gateway.errors import InvalidInput
from gateway.flags import edit
from gateway.flags.document import BATCHING, CACHE, DISABLED, ENABLED, KINDS, ROUTE, SAMPLING, SHADOW
from gateway.flags.sampling import of_one_type

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_FLAGS = "/admin/v1/flags"
_ACCEPTED = 202  # written down, and waiting for approval
# Variant of an options flag whose value the command line writes.
_SET = "set"
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    CACHE: ("enabled", "ttl_s"),
    BATCHING: ("enabled", "max_rows"),
    SAMPLING: ("rate", "errors", "slow_s", "low_confidence", "outliers", "keys", "headers", "durable"),
}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "flags",
        help="see and change which version answers whom",
        description="See and change the flags. Changes are based on the flag as it is read here: if somebody else is "
        "faster, nothing is changed and the exit code is 1.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, text: str, run: Any, *, key: str = "", more: str = "") -> argparse.ArgumentParser:
        found = remote.add_verb(verbs, name, text, run, more=more)
        if key:
            found.add_argument("key", metavar=key, help="such as iris.route; a model's name alone means its route")
        return found

    verb("list", "list all flags", _list)
    verb("get", "show one flag", _get, key="FLAG")
    history = verb("history", "show who changed a flag, when and why", _history, key="FLAG")
    history.add_argument("--limit", type=int, default=20, metavar="N", help="newest changes (default: 20)")
    setting = verb(
        "set",
        "change one flag",
        _set,
        key="FLAG",
        more="For a route: VARIANT=PERCENT, as canary=10 or canary=0.25; the default variant takes the rest. For "
        "<model>.shadow: a number from 0 to 1. For <model>.sampling: such a number, or rate=SHARE and rules for what "
        "is written besides: errors=true, slow_s=SECONDS, low_confidence=PROBABILITY, outliers=true, keys=KEY,KEY, "
        "headers=NAME:VALUE,NAME:VALUE; durable=true if sampled answers wait for the disk. For <model>.cache and "
        "<model>.batching: enabled=true or false, ttl_s=SECONDS, max_rows=ROWS.",
    )
    add = setting.add_argument
    add("values", nargs="*", metavar="VALUE", help="what to set")
    setting.set_defaults(late="values")
    add("--declare", action="append", default=[], metavar="VARIANT=VERSION", help="load a version, at weight 0")
    add("--default", metavar="VARIANT", help="the variant that takes all traffic from now on")
    add("--file", metavar="FILE", help="write the whole flag from this flagd JSON; - reads stdin")
    add("--dry-run", action="store_true", help="show what would change, change nothing")
    add("--reason", default="", help="why; recorded in the audit (needed unless --dry-run)")
    importing = verb(
        "import",
        "make the flags what a file says, as one change",
        _import,
        more="Flags that the file does not name are dropped, but for the routes of models that have packages.",
    )
    importing.add_argument("file", metavar="FILE", help="flagd JSON; - reads stdin")
    importing.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
    importing.add_argument("--reason", default="", help="why; recorded in the audit (needed unless --dry-run)")
    _add_break_glass(setting)
    kill = verb("kill", "send all traffic of a model to the default variant, at once", _kill, key="MODEL")
    kill.add_argument("--reason", default="kill switch", help="why; recorded in the audit")
    enable = verb("enable", "undo a kill: the rules of the route apply again", _enable, key="MODEL")
    enable.add_argument("--reason", required=True, help="why; recorded in the audit")
    _add_break_glass(enable)


def _add_break_glass(parser: argparse.ArgumentParser) -> None:
    text = "do not wait for approvals; sets off an alarm and asks for a review"
    parser.add_argument("--break-glass", action="store_true", help=text)


# -- looking ----------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        document = control.get(_FLAGS)
    if options.json:
        remote.print_json(document)
        return 0
    rows = [_row(key, flag) for key, flag in document["flags"].items()]
    columns: dict[str, dict[str, Any]] = {
        "flag": {"no_wrap": True},
        "state": {},
        "default": {},
        "variants": {},
        "split": {},
        "revision": {"justify": "right"},
    }
    remote.print_table(f"flags at revision {document['metadata']['revision']}", columns, rows)
    return 0


def _get(options: argparse.Namespace) -> int:
    key = _key(options.key)
    with remote.connect(options) as control:
        flag = control.get(_path(key))
    if not options.json:
        name, state, default, variants, split, revision = _row(key, flag)
        print(f"{name}: {state}, revision {revision}\ndefault  {default}\nvariants {variants}")
        if split:
            print(f"split    {split}")
    remote.print_json(flag)
    return 0


def _history(options: argparse.Namespace) -> int:
    key = _key(options.key)
    with remote.connect(options) as control:
        rows = control.get(f"{_path(key)}/history", limit=options.limit)["rows"]
    if options.json:
        remote.print_json(rows)
        return 0
    columns: dict[str, dict[str, Any]] = {
        "revision": {"justify": "right"},
        "when": {"no_wrap": True},
        "who": {},
        "reason": {},
        "after": {},
    }
    cells = [
        (str(row["revision"]), row["ts"][:19] + "Z", row["actor"], row["reason"], _after(key, row["after"]))
        for row in rows
    ]
    remote.print_table(f"history of {key}", columns, cells)
    return 0


def _row(key: str, flag: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    variants = "  ".join(f"{name}={_short(value)}" for name, value in flag["variants"].items())
    default = str(flag.get("defaultVariant"))
    return key, flag["state"], default, variants, _split_text(flag), str(flag["metadata"].get("revision", ""))


def _after(key: str, flag: Mapping[str, Any] | None) -> str:
    if flag is None:
        return "deleted"
    _, state, default, variants, split, _ = _row(key, flag)
    return f"{state}, default {default}, {variants}" + (f", split {split}" if split else "")


def _split_text(flag: Mapping[str, Any]) -> str:
    shares = edit.split_of(flag)
    if shares is None:
        return "by rules" if flag.get("targeting") else ""
    return "  ".join(f"{name} {share * 100:.4g} %" for name, share in shares.items())


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# -- changing ---------------------------------------------------------------------------------------


def _set(options: argparse.Namespace) -> int:
    key = _key(options.key)
    _check_usage(options)
    with remote.connect(options) as control:
        before, etag = _read_or_nothing(control, key)
        after = _wanted(options, key, before)
        return _write(control, options, key, after, etag, dry_run=options.dry_run)


def _kill(options: argparse.Namespace) -> int:
    return _switch(options, DISABLED)


def _enable(options: argparse.Namespace) -> int:
    return _switch(options, ENABLED)


def _switch(options: argparse.Namespace, state: str) -> int:
    key = _key(options.key)
    with remote.connect(options) as control:
        before, etag = control.read(_path(key))
        return _write(control, options, key, {**before, "state": state}, etag, dry_run=False)


def _write(
    control: remote.Remote, options: argparse.Namespace, key: str, after: Any, etag: str, *, dry_run: bool
) -> int:
    headers = {"if-match": etag} if etag else {"if-none-match": "*"}
    if options.reason:
        headers["x-change-reason"] = options.reason
    if getattr(options, "break_glass", False):
        headers["x-break-glass"] = "true"
    query = {"dryRun": "true"} if dry_run else {}
    reply = control.call("PUT", _path(key), body=after, headers=headers, query=query)
    document = reply.json()
    if options.json:
        remote.print_json(document)
    elif reply.status_code == _ACCEPTED:
        print_waiting(document)
        return 0
    elif dry_run:
        print_dry_run(key, document)
    elif reply.headers["etag"] == etag:
        print(f"{key} is already so, at revision {etag.strip(chr(34))}")
    else:
        print(f"{key} is at revision {document['metadata']['revision']} now: {_after(key, document)}")
    if not options.json and not dry_run and options.run is _set and _is_killed(key, document):
        print(f"note: a DISABLED route gives {document['defaultVariant']} to all; `flags enable` undoes that")
    return 0


def _is_killed(key: str, flag: Mapping[str, Any]) -> bool:
    return key.endswith(f".{ROUTE}") and flag["state"] == DISABLED


def _import(options: argparse.Namespace) -> int:
    if not options.reason and not options.dry_run:
        remote.usage("flags", "--reason is needed: why do you make this change?")
    file = remote.read_json(options.file)
    with remote.connect(options) as control:
        before, etag = control.read(_FLAGS)
        headers = {"if-match": etag}
        if options.reason:
            headers["x-change-reason"] = options.reason
        query = {"dryRun": "true"} if options.dry_run else {}
        document = control.call("POST", f"{_FLAGS}:import", body=file, headers=headers, query=query).json()
    if options.json:
        remote.print_json(document)
    elif options.dry_run:
        print_dry_run("the flags", document)
    else:
        _print_imported(before, document)
    return 0


def _print_imported(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    old, new, revision = before["flags"], after["flags"], after["metadata"]["revision"]
    if revision == before["metadata"]["revision"]:
        print(f"the flags are already so, at revision {revision}")
        return
    print(f"the flags are at revision {revision} now")
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            print(f"  {key}: {_after(key, new.get(key))}")


def _check_usage(options: argparse.Namespace) -> None:
    """Mistakes that no flag needs to be read for."""
    words = options.values or options.declare or options.default
    if bool(words) == bool(options.file):
        remote.usage("flags", "give either what to set, or --file FILE with the whole flag")
    if not options.reason and not options.dry_run:
        remote.usage("flags", "--reason is needed: why do you make this change?")
    if (options.declare or options.default) and not _key(options.key).endswith(f".{ROUTE}"):
        remote.usage("flags", "--declare and --default are for routes")


def _wanted(options: argparse.Namespace, key: str, before: Any | None) -> Any:
    """The flag as the command line wants it."""
    if options.file:
        return remote.read_json(options.file)
    kind = key.rpartition(".")[2]
    if kind != ROUTE:
        value = _option_value(kind, options.values)
        kept = {} if before is None else before
        variants = {**kept.get("variants", {}), _SET: value}
        if kind == SAMPLING:
            variants = of_one_type(variants)
        return {**kept, "state": ENABLED, "variants": variants, "defaultVariant": _SET}
    if before is None:
        raise remote.RemoteFailed(f"no flag {key!r}: is there a package of that model in the models directory?")
    return edit.edit_route(
        before,
        shares={name: _weight(name, share) for name, share in _pairs(options.values, "VARIANT=PERCENT")},
        declare=dict(_pairs(options.declare, "VARIANT=VERSION")),
        default=options.default,
    )


def _option_value(kind: str, values: list[str]) -> Any:
    if kind == SHADOW or (kind == SAMPLING and "=" not in "".join(values)):
        if len(values) != 1:
            remote.usage("flags", f"{kind} takes one number from 0 to 1")
        return float(_decimal(kind, values[0]))
    if kind not in _OPTIONS:
        remote.usage("flags", f"unknown kind of flag {kind!r}; known: {', '.join(KINDS)}")
    known = _OPTIONS[kind]
    pairs = _pairs(values, "NAME=VALUE")
    for name, _text in pairs:
        if name not in known:
            remote.usage("flags", f"{kind} has no option {name!r}; it has {', '.join(known)}")
    return {name: _field(name, text) for name, text in pairs}


def _field(name: str, text: str) -> Any:
    """One field of an object flag."""
    if name in ("enabled", "errors", "outliers", "durable"):
        if text not in ("true", "false"):
            raise InvalidInput(name, repr(text), "true or false")
        return text == "true"
    if name == "keys":
        return text.split(",")
    if name == "headers":
        headers: dict[str, list[str]] = {}
        for pair in text.split(","):
            header, colon, value = pair.partition(":")
            if not (header and colon and value):
                remote.usage("flags", f"{pair!r} is not of the form NAME:VALUE")
            headers.setdefault(header, []).append(value)
        return headers
    number = float(_decimal(name, text))
    return int(number) if number.is_integer() else number


def _weight(name: str, share: str) -> int:
    """A share in percent as a weight of 10,000."""
    weight = _decimal(name, share.removesuffix("%").strip()) * (edit.TOTAL_WEIGHT // 100)
    if not 0 <= weight <= edit.TOTAL_WEIGHT or weight != int(weight):
        raise InvalidInput(name, share, "percent from 0 to 100 with at most two decimals")
    return int(weight)


def _decimal(name: str, text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise InvalidInput(name, repr(text), "a number")
    return found


def _pairs(words: list[str], form: str) -> list[tuple[str, str]]:
    pairs = [tuple(word.split("=", 1)) for word in words]
    for word, pair in zip(words, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            remote.usage("flags", f"{word!r} is not of the form {form}")
    return [(name, value) for name, value in pairs]


def _read_or_nothing(control: remote.Remote, key: str) -> tuple[Any | None, str]:
    try:
        return control.read(_path(key))
    except remote.RemoteFailed as error:
        if error.code != "unknown_flag":
            raise
        return None, ""


def _key(given: str) -> str:
    return given if "." in given else f"{given}.{ROUTE}"


def _path(key: str) -> str:
    return f"{_FLAGS}/{quote(key, safe='')}"
