"""Closed-loop load by wrk, on a core of its own: each connection asks again once it was answered."""

from __future__ import annotations

import json
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

from speed.machine import LOAD_CORE

_GRACE_S = 30.0


class LoadFailed(Exception):
    """Not every request was answered well, or the load generator itself failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw. busy: the share of its core that wrk itself used; near 1, it was the bound.

    refused: of the requests, those whose status was no success. unanswered: requests that had no answer within the
    time-out or whose connection failed; they are not among the requests.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    busy: float
    refused: int = 0
    unanswered: int = 0


def run(script: Path, url: str, *, connections: int, seconds: int, may_refuse: bool = False) -> Load:
    """One run. Raises LoadFailed if any request failed; with may_refuse failures are told instead."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10",
               "-s", str(script), url]  # fmt: skip
    before_s = _children_s()
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_S)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"wrk did not end within {seconds + _GRACE_S:g} s") from error
    if told.returncode != 0:
        raise LoadFailed(f"wrk failed: {(told.stderr or told.stdout).strip()[-300:]}")
    return parse(told.stdout, _children_s() - before_s, may_refuse=may_refuse)


def parse(printed: str, busy_s: float, *, may_refuse: bool = False) -> Load:
    """The line that our script makes wrk print. Raises LoadFailed if there is none, or as run does."""
    line = next((line for line in printed.splitlines() if line.startswith("figures ")), None)
    if line is None:
        raise LoadFailed(f"wrk printed no figures: {printed.strip()[-300:]}")
    told = json.loads(line.removeprefix("figures "))
    if (told["errors"] or told["failures"]) and not may_refuse:
        raise LoadFailed(f"of {told['requests']} requests {told['failures']} had a status that is no success; "
                         f"{told['errors']} errors of connections")  # fmt: skip
    if not told["requests"]:
        raise LoadFailed("no request was answered")
    duration_s = told["duration_us"] / 1e6
    return Load(
        told["requests"],
        told["requests"] / duration_s,
        told["p50_us"] / 1000,
        told["p99_us"] / 1000,
        told["p999_us"] / 1000,
        busy_s / duration_s,
        told["failures"],
        told["errors"],
    )


def _children_s() -> float:
    """Processor time of the children that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
