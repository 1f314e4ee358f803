"""Claims on a state directory: exclusive by part, swept of the dead, patient with orphans."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway import boot
from gateway.errors import CannotStart

ALL = ("serving", "control", "monitor")


def test_a_claim_makes_a_private_state_directory_with_a_fresh_run_directory(state: Path) -> None:
    claimed = boot.claim(state, ALL, wait_s=0)
    assert claimed.run_dir == state / "run" / claimed.name
    assert claimed.metrics_dir.is_dir()
    assert claimed.status_dir.is_dir()
    assert state.stat().st_mode & 0o077 == 0, "tokens and samples are nobody else's business"
    claimed.release()
    assert not claimed.run_dir.exists()


def test_the_same_part_is_refused_while_it_is_held_and_free_afterwards(state: Path) -> None:
    claimed = boot.claim(state, ("serving",), wait_s=0)
    with pytest.raises(CannotStart, match=rf"\(process {os.getpid()}\) runs serving on the state directory"):
        boot.claim(state, ALL, wait_s=0)
    claimed.release()
    boot.claim(state, ALL, wait_s=0).release()


def test_different_parts_share_a_state_directory_and_leave_each_other_alone(state: Path) -> None:
    claims = [boot.claim(state, (part,), wait_s=0) for part in ALL]
    assert len({claimed.name for claimed in claims}) == 3
    assert all(claimed.run_dir.is_dir() for claimed in claims)
    for claimed in claims:
        claimed.release()


def test_run_directories_of_dead_boots_are_removed(state: Path) -> None:
    dead = state / "run" / "20200101T000000abcd"
    (dead / "metrics").mkdir(parents=True)
    (dead / "metrics" / "counter_1.db").write_bytes(b"old")
    claimed = boot.claim(state, ALL, wait_s=0)
    assert not dead.exists()
    claimed.release()


def orphan(state: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """A boot whose supervisor is gone and one of whose children lives until its stdin is closed."""
    script = (
        "import subprocess, sys; from pathlib import Path; from gateway import boot\n"
        "claimed = boot.claim(Path(sys.argv[1]), ('serving',), wait_s=0)\n"
        "subprocess.Popen(['cat'], pass_fds=[claimed.alive_fd], stdout=subprocess.DEVNULL)\n"
        "print(claimed.run_dir, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        run_dir = Path(process.stdout.readline().decode().strip())
    assert process.wait(20) == 0
    return run_dir, process


def test_children_of_a_killed_supervisor_are_waited_for(state: Path) -> None:
    run_dir, process = orphan(state)
    assert process.stdin is not None
    with pytest.raises(CannotStart, match="processes of a supervisor that was killed still run"):
        boot.claim(state, ALL, wait_s=0)
    assert run_dir.is_dir()
    leaving = threading.Timer(0.2, process.stdin.close)
    leaving.start()
    claimed = boot.claim(state, ALL, wait_s=20)
    leaving.join()
    assert not run_dir.exists()
    claimed.release()


def test_children_of_another_part_are_not_waited_for(state: Path) -> None:
    run_dir, process = orphan(state)
    assert process.stdin is not None
    boot.claim(state, ("control",), wait_s=0).release()
    assert run_dir.is_dir()
    process.stdin.close()


def test_a_state_directory_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match=r"cannot use the state directory .*file/state: Not a directory"):
        boot.claim(tmp_path / "file" / "state", ALL, wait_s=0)
