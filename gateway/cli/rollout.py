"""``sluicegate rollout``: release a version step by step, watch it, steer it, take it back."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli import remote

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_ROLLOUTS = "/admin/v1/rollouts"
_VERBS: Mapping[str, tuple[str, str]] = {
    "pause": ("hold a rollout where it is", "paused by hand"),
    "resume": ("go on with a paused rollout; its step begins anew", "resumed by hand"),
    "abort": ("take all traffic back from the candidate, at once and in every phase", "aborted by hand"),
    "rollback": ("undo a promotion: the version before answers again", "rolled back by hand"),
    "retry": ("start the plan of a rollout that is over once more", "once more"),
}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "rollout",
        help="release a version step by step, with guards",
        description="Release a version step by step. A judge compares it with the stable version in the same minutes "
        "and takes it back by itself. ID is a rollout's id, such as iris-3; a model's name means its newest rollout.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, text: str, run: Any, *, needs_id: bool = True) -> argparse.ArgumentParser:
        found = remote.add_verb(verbs, name, text, run)
        if needs_id:
            found.add_argument("id", metavar="ID", help="such as iris-3; a model's name means its newest rollout")
        return found

    start = verb("start", "start a rollout of a version", _start, needs_id=False)
    add = start.add_argument
    add("model", metavar="MODEL", help="the model's name")
    add("version", metavar="VERSION", nargs="?", help="the candidate (unless --plan names it)")
    start.set_defaults(late="version")
    add("--strategy", choices=("canary", "bluegreen", "shadow", "experiment"), help="default: canary")
    add(
        "--steps",
        metavar="LIST",
        help="PERCENT:SECONDS:REQUESTS with commas between, such as 1:60:100,10:300:1000; a step lasts at least so "
        "long and until the candidate has answered so many (default: 60 s and 100 requests a step)",
    )
    add("--promote", choices=("auto", "manual"), help="after the last step (default: auto for a canary, else manual)")
    add("--variant", metavar="NAME", help="the candidate's variant (default: canary, green, shadow or candidate)")
    add("--plan", metavar="FILE", help="the whole plan as JSON; - reads stdin")
    add("--dry-run", action="store_true", help="show each stage, and which regressions the plan can see")
    add("--break-glass", action="store_true", help="do not wait for approvals; raises an alarm and is reviewed later")
    add("--reason", default="", help="why; recorded in the audit (needed unless --dry-run)")

    status = verb("status", "show where rollouts stand, what comes next and why", _status, needs_id=False)
    status.add_argument("id", metavar="ID", nargs="?", help="one rollout; all of them if it is left out")
    verb("report", "show what can be said of the two arms", _report)
    promote = verb("promote", "go to the next step now; after the last one, give the candidate all traffic", _promote)
    promote.add_argument("--full", action="store_true", help="give the candidate all traffic now")
    promote.add_argument("--reason", default="promoted by hand", help="why; recorded in the audit")
    approve = verb("approve", "agree to a rollout that waits for it (scope approver, not its author)", _approve)
    approve.add_argument("--reason", default="approved", help="why; recorded in the audit")
    for name, (text, reason) in _VERBS.items():
        found = verb(name, text, _steer)
        found.add_argument("--reason", default=reason, help="why; recorded in the audit")
        found.set_defaults(verb=name)


# -- starting ---------------------------------------------------------------------------------------


def _start(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if not options.reason and not options.dry_run:
        remote.usage("rollout", "--reason is needed: why do you release this version?")
    path = f"/admin/v1/models/{quote(options.model, safe='')}/rollouts"
    headers = {"x-change-reason": options.reason} if options.reason else {}
    if options.break_glass:
        headers["x-break-glass"] = "true"
    query = {"dryRun": "true"} if options.dry_run else {}
    with remote.connect(options) as control:
        found = control.call("POST", path, body=plan, headers=headers, query=query).json()
    if options.json:
        remote.print_json(found)
    elif options.dry_run:
        _print_forecast(options.model, found)
    else:
        print(f"rollout {found['id']}: version {found['version']} as {found['variant']}, {found['why']}")
        print(f"next: {found['next']}; see `sluicegate rollout status {found['id']}`")
        if found["change_id"] and options.break_glass:
            print(f"somebody else has to review it: `sluicegate changes acknowledge {found['change_id']} --reason ...`")
        elif found["change_id"]:
            print(f"its stakes are high: somebody else runs `sluicegate rollout approve {found['id']}`")
    return 0


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    plan: dict[str, Any] = _from_file(options.plan) if options.plan else {}
    if options.version:
        plan["version"] = options.version
    if options.strategy or "strategy" not in plan:
        plan["strategy"] = options.strategy or "canary"
    if options.steps is not None:
        plan["steps"] = [_step(text) for text in options.steps.split(",")]
    if options.promote:
        plan["promote"] = options.promote
    if options.variant:
        plan["variant"] = options.variant
    if "version" not in plan:
        remote.usage("rollout", "which version? `sluicegate rollout start MODEL VERSION`")
    return plan


def _step(text: str) -> dict[str, Any]:
    """``5``, ``5:60`` or ``5:60:1000``: percent, seconds, requests."""
    names = ("weight_percent", "min_time_s", "min_requests")
    parts = text.strip().split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    whole = all(math.isfinite(number) for number in numbers) and all(number.is_integer() for number in numbers[2:])
    if not 1 <= len(numbers) <= len(names) or not whole:
        remote.usage("rollout", f"--steps: {text!r} is not PERCENT, PERCENT:SECONDS or PERCENT:SECONDS:REQUESTS")
    step: dict[str, Any] = dict(zip(names, numbers, strict=False))
    if "min_requests" in step:
        step["min_requests"] = int(step["min_requests"])
    return step


def _from_file(name: str) -> dict[str, Any]:
    plan = remote.read_json(name)
    if not isinstance(plan, dict):
        raise remote.RemoteFailed(f"{name} holds no JSON object")
    return plan


def _print_forecast(model: str, found: Mapping[str, Any]) -> None:
    print(f"this would release version {found['plan']['version']} of {model} in these stages:")
    for stage in found["stages"]:
        changes = "; ".join(remote.difference(each) for each in stage["diff"]) or "the route as it is"
        print(f"  {stage['stage']:>10}: {changes}")
    if found["approvals"]:
        people = remote.people(found["approvals"])
        print(f"its stakes are high: it waits for approval by {people} before it gets traffic")
    for line in found["foresight"]:
        print(line)


# -- looking ----------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        one = options.id is not None
        listed = {} if one else control.get(_ROLLOUTS)
        found = control.get(_path(_resolved(control, options.id))) if one else listed["rollouts"]
    if options.json:
        remote.print_json(found)
    elif one:
        _print_one(found)
        _print_judge(found)
    elif found:
        columns: dict[str, dict[str, Any]] = {
            "rollout": {"no_wrap": True},
            "strategy": {},
            "version": {},
            "phase": {},
            "step": {},
            "weight": {"justify": "right"},
            "why": {},
        }
        remote.print_table("rollouts", columns, [_row(each) for each in found])
    else:
        print("no rollouts yet; `sluicegate rollout start MODEL VERSION --reason ...` starts one")
    if not options.json:
        for each in listed.get("unreadable", ()):
            print(f"{each['id']} cannot be read by this gateway, only aborted: {each['why']}")
    return 0


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    phase = _phase(each)
    step = f"{each['step']}/{each['steps']}"
    return each["id"], each["strategy"], each["version"], phase, step, f"{each['weight_percent']:g} %", each["why"]


def _print_one(each: Mapping[str, Any]) -> None:
    what = f"{each['strategy']} of version {each['version']} as {each['variant']}"
    print(f"{each['id']}: {what}, {_phase(each)}")
    print(f"step    {each['step']} of {each['steps']}, {each['weight_percent']:g} % of traffic")
    print(f"why     {each['why']}")
    if each["next"]:
        print(f"next    {each['next']}")


def _phase(each: Mapping[str, Any]) -> str:
    phase = each["phase"].replace("_", " ")
    return f"{phase} ({each['reason']})" if each["reason"] else phase


def _print_judge(each: Mapping[str, Any]) -> None:
    if each["not_yet_promotable"]:
        print(f"judge   not to be promoted yet: {each['not_yet_promotable']}")
    for finding in each["judge"]:
        mark = f"{finding['action']}!" if finding["tripped"] else "quiet"
        print(f"  {mark:<9} {finding['text']}")


def _report(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        found = control.get(f"{_path(_resolved(control, options.id))}/report")
    if options.json:
        remote.print_json(found)
    else:
        print("\n".join(found["text"]))
    return 0


# -- steering ---------------------------------------------------------------------------------------


def _promote(options: argparse.Namespace) -> int:
    options.verb = "promoteFull" if options.full else "promote"
    return _steer(options)


def _approve(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        found = control.get(_path(_resolved(control, options.id)))
        if not found["change_id"]:
            raise remote.RemoteFailed(f"rollout {found['id']} needs no approval")
        path = f"/admin/v1/changes/{quote(found['change_id'], safe='')}:approve"
        change = control.call("POST", path, headers={"x-change-reason": options.reason}).json()
    if options.json:
        remote.print_json(change)
    else:
        people = ", ".join(each["actor"] for each in change["approvals"])
        print(f"{found['id']}: {change['state']}, approved by {people} ({change['required']} needed)")
    return 0


def _steer(options: argparse.Namespace) -> int:
    with remote.connect(options) as control:
        path = f"{_path(_resolved(control, options.id))}:{options.verb}"
        found = control.call("POST", path, headers={"x-change-reason": options.reason}).json()
    if options.json:
        remote.print_json(found)
    else:
        _print_one(found)
    return 0


def _resolved(control: remote.Remote, given: str) -> str:
    """A rollout's id; of a model's name, that of its newest rollout. A model may have a name that looks like an id."""
    looks_like_id = given.rpartition("-")[2].isdecimal() and given.rpartition("-")[0]
    if looks_like_id and any(each["id"] == given for each in control.get(_ROLLOUTS)["rollouts"]):
        return given
    listed = control.get(f"/admin/v1/models/{quote(given, safe='')}/rollouts")
    found: list[str] = [each["id"] for each in (*listed["rollouts"], *listed.get("unreadable", ()))]
    if looks_like_id and not found:
        return given
    if not found:
        raise remote.RemoteFailed(f"no rollout of {given!r} yet")
    return max(found, key=lambda rollout_id: int(rollout_id.rpartition("-")[2]))


def _path(rollout_id: str) -> str:
    return f"{_ROLLOUTS}/{quote(rollout_id, safe='')}"
