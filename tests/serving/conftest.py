"""Fixtures of the serving room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.serving.runpool import RunPool


@pytest.fixture
def pool() -> Iterator[RunPool]:
    threads = RunPool(1)
    yield threads
    threads.close()
