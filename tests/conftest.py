"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer, require

# How long an example takes is the machine's business, not a test's. Where a test does not say how many it needs, few
# are tried each time, and others the next time; --hypothesis-profile=thorough tries many.
settings.register_profile("usual", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("usual")

# As the command line does for itself: tests tell nobody which models they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Some hundred gateways are started, each of four processes or more: compiled once, not in each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An empty models directory."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def one_model(models: Path) -> None:
    """One small model, iris 1, in the models directory."""
    from tests.builders import classifier, write_package  # here: it takes long, and few tests ask for it

    write_package(models, classifier())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where a state directory may be; it does not exist yet."""
    return tmp_path / "state"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server that all tests share."""
    server = PostgresServer(require())
    try:
        server.start()
        yield server
        server.stop("immediate")
    finally:
        server.remove()


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The address of an empty database."""
    return postgres.patient_url(postgres.new_database())
