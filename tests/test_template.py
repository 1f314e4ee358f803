"""The template that children are forked from: they are the supervisor's own, and it can be lost at any time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.live import LiveGateway, child_processes, eventually, is_running, name_of

ROW = {"rows": [dict.fromkeys(classifier().features, 1.0)]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway whose template the tests may end; each leaves it with one that is ready."""
    root = tmp_path_factory.mktemp("forked")
    write_package(root / "models", classifier())
    with LiveGateway(root / "models", root / "state") as live:
        yield live


def template_of(gateway: LiveGateway) -> int | None:
    return next((pid for pid in child_processes(gateway) if name_of(pid) == "template"), None)


def is_forked(pid: int) -> bool:
    """A fork has the command line of the process that it was made from."""
    return b"gateway.template" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for_another(gateway: LiveGateway, old: int) -> int:
    """Wait for a template that takes orders, other than *old*; returns its pid."""

    def found() -> int | None:
        pid = template_of(gateway)
        return None if pid == old or f'"template is ready", "pid": {pid}}}' not in gateway.log else pid

    return eventually(found, "there is another template")


def test_children_are_forked_and_are_the_supervisors_own(gateway: LiveGateway) -> None:
    template = template_of(gateway)
    assert template is not None
    children = {child["role"]: child["pid"] for child in gateway.ready["children"]}
    assert children.keys() == {"worker", "control", "monitor"}
    assert {*children.values(), template} == set(child_processes(gateway)), "nothing is left of who was in between"
    assert all(is_forked(pid) for pid in children.values())
    assert len({os.getpgid(pid) for pid in children.values()}) == 3, "each has a group of its own, as Ctrl-C needs it"
    successor = gateway.kill("worker")
    assert is_forked(successor)
    assert template_of(gateway) == template
    assert gateway.log.count("worker-0 died: killed by SIGKILL") == 1, "the supervisor saw how it ended"
    assert gateway.data.post("/predict/iris", json=ROW).status_code == 200


def test_a_killed_template_disturbs_nobody_and_another_one_follows(gateway: LiveGateway) -> None:
    old, children = template_of(gateway), gateway.ready["children"]
    assert old is not None
    os.kill(old, signal.SIGKILL)
    eventually(lambda: "the template is gone" in gateway.log, "it is missed")
    assert gateway.ready["children"] == children
    gateway.kill("worker")
    assert gateway.data.post("/predict/iris", json=ROW).status_code == 200
    wait_for_another(gateway, old)
    assert is_forked(gateway.kill("control")), "the new one forks as the old one did"


def test_a_template_that_hangs_holds_nobody_up(gateway: LiveGateway) -> None:
    old = template_of(gateway)
    assert old is not None
    os.kill(old, signal.SIGSTOP)
    assert not is_forked(gateway.kill("worker"))
    assert not is_running(old)
    assert gateway.data.post("/predict/iris", json=ROW).status_code == 200
    wait_for_another(gateway, old)


def test_a_restart_of_the_workers_imports_anew_what_is_on_the_disk(gateway: LiveGateway) -> None:
    old, worker = template_of(gateway), gateway.child_pids("worker")[0]
    gateway.signal(signal.SIGHUP)
    assert is_forked(gateway.wait_replaced("worker", 0, worker))
    assert template_of(gateway) not in (None, old)
    # On a connection of its own: the old worker may close the others at any moment.
    assert httpx.post(f"{gateway.data_url}/predict/iris", json=ROW).status_code == 200


def test_the_template_leaves_with_its_supervisor(models: Path, state: Path) -> None:
    write_package(models, classifier())
    gateway = LiveGateway(models, state, role="serving", wait=False)
    with gateway:
        template = eventually(lambda: template_of(gateway), "there is a template")  # it still imports
        gateway.signal(signal.SIGKILL)
        eventually(lambda: not is_running(template), "it has left")
        gateway.wait_stopped(exit_code=-signal.SIGKILL)


def test_libraries_that_start_threads_are_not_forked(models: Path, state: Path) -> None:
    write_package(models, classifier())
    with LiveGateway(models, state, environment={"OPENBLAS_NUM_THREADS": "2"}) as gateway:
        assert template_of(gateway) is None
        assert "each child imports all by itself" in gateway.log
        assert not any(is_forked(pid) for pid in child_processes(gateway))
