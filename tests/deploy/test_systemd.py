"""The systemd unit, judged by systemd itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.children import FLUSH_GRACE_S
from gateway.settings import Settings
from tests.deploy.programs import require

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "sluicegate.service"


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit with the command of this environment in place of the one under /opt."""
    require("systemd-analyze", "systemd")
    command = Path(sys.executable).with_name("sluicegate")
    unit = tmp_path / "sluicegate.service"
    unit.write_text(UNIT.read_text().replace("/opt/sluicegate/bin/sluicegate", str(command)))
    return unit


def test_systemd_finds_nothing_wrong_with_the_unit(installed_unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", installed_unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_exposes_little_of_the_machine(installed_unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", installed_unit],
        capture_output=True,
        text=True,
    )
    print(done.stdout.strip().splitlines()[-1])  # pytest -s shows the score
    assert done.returncode == 0, done.stdout


def test_systemd_waits_longer_for_the_end_than_the_gateway_takes() -> None:
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("TimeoutStopSec="))
    assert float(line.partition("=")[2]) > Settings().server.drain_timeout_s + 2 * FLUSH_GRACE_S
