"""Fixtures of the tests that follow a sample log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.offline.logs import Log, monitor_settings
from tests.offline.workshop import Workshop


@pytest.fixture
def settings(models: Path, state: Path) -> Settings:
    return monitor_settings(models, state, window_rows=300)


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    written = Log(settings)
    yield written
    written.close()


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "samples", tmp_path / "models")
