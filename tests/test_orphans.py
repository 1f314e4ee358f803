"""Who loses its parent: what is left of a supervisor that was killed leaves, whatever state it is in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import orphans
from tests.builders import classifier
from tests.holding import held
from tests.live import LiveGateway, child_processes, eventually, is_running, name_of

pytestmark = pytest.mark.usefixtures("one_model")
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def adopting() -> Iterator[None]:
    """Orphans come to us, who are of their session, as they do to the shell that is process 1 of a container.

    Those that come to another session the system wakes: their process groups are orphans themselves, then.
    """
    assert orphans.adopt()
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that a signal has stopped."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def kill_and_start_anew(gateway: LiveGateway) -> None:
    """Kill the supervisor, start another one on its state directory, and see that it answers."""
    ours = child_processes(gateway)
    gateway.signal(signal.SIGKILL)
    gateway.wait_stopped(exit_code=-signal.SIGKILL)
    eventually(lambda: not any(is_running(pid) for pid in ours), "all have left", timeout_s=20)
    gateway.start()
    row = {"rows": [dict.fromkeys(classifier().features, 1.0)]}
    assert gateway.data.post("/predict/iris", json=row).status_code == 200


def process(gateway: LiveGateway, name: str) -> int:
    return next(pid for pid in child_processes(gateway) if name_of(pid) == name)


@pytest.mark.usefixtures("adopting")
@pytest.mark.parametrize("name", ["template", "worker-0", "control", "monitor"])
def test_what_a_signal_has_stopped_keeps_no_successor_of_its_supervisor_out(
    models: Path, state: Path, name: str
) -> None:
    with LiveGateway(models, state) as gateway:
        before = child_processes(gateway)
        with stopped(process(gateway, name)):
            kill_and_start_anew(gateway)
        for pid in before:
            os.waitpid(pid, 0)  # they had come to us


def test_nor_does_a_template_that_stands_still(models: Path, state: Path) -> None:
    with LiveGateway(models, state) as gateway, held(process(gateway, "template")):
        kill_and_start_anew(gateway)
