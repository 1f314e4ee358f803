"""When a process is said to grow, and when not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable

import growth
import pytest
from growth import Bounds, Look, Watch

MIB = 1024 * 1024


def watched(rss_mib: Callable[[float], float], descriptors: Callable[[float], int] = lambda _at: 30) -> dict[str, bool]:
    """Whether each quantity is flat of a process that was looked at each second for two minutes."""
    looks = [Look(float(at), int(rss_mib(at) * MIB), int(rss_mib(at) * MIB), descriptors(at), 9) for at in range(120)]
    return {verdict.what: verdict.is_flat for verdict in Watch({"worker 0": looks}).verdicts()}


@pytest.mark.parametrize(
    "rss_mib",
    [
        lambda _at: 100.0,
        lambda at: 100.0 + random.Random(at).uniform(-9, 9),
        lambda at: 60.0 + min(at, 30) * 2,
        lambda at: 100.0 + (at % 20),
        lambda at: 100.0 + 80 * (at == 90),
        lambda at: 140.0 - at / 3,
    ],
    ids=["constant", "noise", "all in the warm-up", "a saw", "one peak", "shrinking"],
)
def test_what_does_not_grow_is_flat(rss_mib: Callable[[float], float]) -> None:
    assert watched(rss_mib) == {"RSS": True, "anonymous": True, "descriptors": True, "threads": True}


@pytest.mark.parametrize(
    "rss_mib",
    [
        lambda at: 100.0 + at / 5,
        lambda at: 100.0 + at / 5 + random.Random(at).uniform(-9, 9),
        lambda at: 100.0 + at / 5 + (at % 20),
        lambda at: 100.0 + 4 * (at // 15),
    ],
    ids=["a line", "a line in noise", "a line under a saw", "steps"],
)
def test_what_grows_is_seen(rss_mib: Callable[[float], float]) -> None:
    found = watched(rss_mib)
    assert not found["RSS"]
    assert found["descriptors"]


def test_descriptors_that_are_never_closed_are_seen() -> None:
    assert not watched(lambda _at: 100.0, lambda at: 30 + int(at // 10))["descriptors"]


def test_a_process_in_whose_place_is_another_is_told() -> None:
    watch = Watch()
    watch.look({"me": os.getpid()})
    assert not watch.replaced
    watch.look({"me": os.getppid()})
    assert watch.replaced == {"me"}


def test_a_process_is_looked_at_as_the_kernel_has_it() -> None:
    script = "import os, sys; held = [os.dup(0) for _ in range(50)]; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        look = growth.held(process.pid)
    assert 53 <= look.descriptors < 60
    assert look.threads == 1
    assert look.rss_bytes >= look.anonymous_bytes > MIB
    assert "MiB | GROWS |" in growth.table([growth.Verdict("me", "RSS", 1.0, 2.0, 9.0 * MIB, Bounds().memory_bytes)])
