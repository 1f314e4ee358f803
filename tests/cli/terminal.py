"""A terminal at which an operator runs commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.cli import main


class Terminal:
    """Runs commands as an operator with the admin token would, and keeps what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def run(self, *arguments: str) -> int:
        try:
            code = main([*arguments])
        except SystemExit as ended:  # argparse's way to say "usage"
            code = int(ended.code or 0)
        printed = self._capsys.readouterr()
        self.out, self.err = printed.out, printed.err
        return code

    def ok(self, *arguments: str) -> str:
        assert self.run(*arguments) == 0, self.err
        return self.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def fails(self, *arguments: str) -> str:
        """Exit code 1, nothing on stdout, and why on stderr."""
        assert self.run(*arguments) == 1
        assert self.out == ""
        assert self.err.startswith("sluicegate: ")
        return self.err

    def usage(self, *arguments: str) -> str:
        assert self.run(*arguments) == 2
        return self.err
