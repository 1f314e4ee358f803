"""One control process for all tests of a module that keep to models of their own; and a fresh one for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.process import ControlProcess, process_in
from tests.receiver import Receiver


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    """A control process that the tests of a module share."""
    with process_in(tmp_path_factory.mktemp("control")) as process:
        yield process


@pytest.fixture
def control(models: Path, state: Path) -> Iterator[ControlProcess]:
    """A control process of one's own."""
    with ControlProcess(models, state) as process:
        yield process


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver
