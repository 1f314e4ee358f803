"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's business, not a test's.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# As the command line does for itself: tests tell nobody which models they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty models directory."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where a state directory may be; it does not exist yet."""
    return tmp_path / "state"
