"""The systemd units, judged by systemd itself, and what they start by the gateway."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.children import FLUSH_GRACE_S
from gateway.settings import Settings
from tests.deploy.programs import require

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("sluicegate.service", "sluicegate-monitor.service", "serving.conf")


@pytest.fixture(params=UNITS)
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit, or the main one with the drop-in, with the command of this environment in place of the one under /opt."""
    require("systemd-analyze", "systemd")
    command = str(Path(sys.executable).with_name("sluicegate"))

    def install(name: str, directory: Path) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(
            (SHIPPED / name).read_text().replace("/opt/sluicegate/bin/sluicegate serve", f"{command} serve")
        )
        return directory / name

    if request.param.endswith(".service"):
        return install(request.param, tmp_path)
    install(request.param, tmp_path / "sluicegate.service.d")
    return install("sluicegate.service", tmp_path)


def test_systemd_finds_nothing_wrong_with_a_unit(installed: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", installed], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_unit_exposes_little_of_the_machine(installed: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", installed],
        capture_output=True,
        text=True,
    )
    print(done.stdout.strip().splitlines()[-1])  # pytest -s shows the score
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_the_gateway_takes_what_a_unit_starts(name: str, tmp_path: Path) -> None:
    lines = [
        line.partition("=")[2] for line in (SHIPPED / name).read_text().splitlines() if line.startswith("ExecStart=/")
    ]
    (command,) = (shlex.split(line) for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *command[1:], "--print-config"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["paths"] == {"models": "/srv/sluicegate/models", "state": "/var/lib/sluicegate"}


def test_systemd_waits_longer_for_the_end_than_the_gateway_takes() -> None:
    unit = (SHIPPED / "sluicegate.service").read_text()
    (line,) = (line for line in unit.splitlines() if line.startswith("TimeoutStopSec="))
    assert float(line.partition("=")[2]) > Settings().server.drain_timeout_s + 2 * FLUSH_GRACE_S
