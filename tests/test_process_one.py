"""The gateway as process 1 of a container: a namespace of its own, in which nobody else looks after anybody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import classifier, write_package
from tests.live import eventually, is_running

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture(scope="module", autouse=True)
def _may_have_a_namespace() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is not installed")
    done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no PID namespaces here: {done.stderr.strip()}")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize("twice", [False, True])
def test_it_buries_whom_it_inherits_and_ends_as_it_is_told(models: Path, state: Path, twice: bool) -> None:
    write_package(models, classifier())
    ready_file, log_file = state.with_name("ready.json"), state.with_name("log")
    serve = f"exec {sys.executable} -m gateway serve --models {models} --state {state} --host 127.0.0.1 --port 0"
    serve += f" --control-port 0 --ready-file {ready_file}"
    with log_file.open("wb") as log:
        outside = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", f"(sleep 3600 &); {serve}"],
            stderr=log,
            env={**os.environ, "SLUICEGATE_SERVER__DRAIN_DELAY_S": "3600" if twice else "0"},
        )
    try:
        eventually(ready_file.exists, "it is ready", timeout_s=60)
        assert json.loads(ready_file.read_text())["pid"] == 1
        (gateway,) = children(outside.pid)
        (orphan,) = [pid for pid in children(gateway) if "sleep" in command_of(pid)]
        os.kill(orphan, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{orphan}").exists(), "nothing of it is left, not even a zombie")
        left = children(gateway)
        assert len(left) == 4
        os.kill(gateway, signal.SIGTERM)
        if twice:
            eventually(lambda: "stopping on SIGTERM" in log_file.read_text(), "the first is heard")
            os.kill(gateway, signal.SIGINT)
        assert outside.wait(60) == (128 + signal.SIGINT if twice else 0), log_file.read_text()
        assert not [pid for pid in left if is_running(pid)]
    finally:
        outside.kill()
        outside.wait()
