"""Programs that judge what we ship: Debian's, or those of the dependency group "deploy"."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def require(program: str, package: str) -> None:
    """Skip the test without Debian's program; where everything is built (CI is set) that is a failure."""
    if shutil.which(program) is None:
        _do_without(f"{program} is not installed; on Debian: apt-get install {package}")


def from_group(program: str) -> str:
    """The path of a program of the group "deploy"; without it the test is skipped, or fails where CI is set."""
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        _do_without(f"{program} is not installed; pip install --group deploy")
    return str(path)


def _do_without(told: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)
