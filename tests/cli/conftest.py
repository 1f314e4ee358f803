"""Fixtures of the verbs that talk to control: a process of it, and a terminal beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, process_in


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    with process_in(tmp_path_factory.mktemp("control")) as process:
        yield process


@pytest.fixture
def terminal(control: ControlProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("SLUICEGATE_URL", control.url)
    monkeypatch.setenv("SLUICEGATE_TOKEN", control.admin_token)
    return Terminal(capsys)
