"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


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
