"""The frame of the command line: help, exit codes, and what a mistake looks like."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import main

SLUICEGATE = (sys.executable, "-m", "gateway")
# Each takes longer to import than a person should wait for help.
HEAVY = (
    *("numpy", "onnxruntime", "onnx", "prometheus_client", "httpx", "rich", "starlette", "uvicorn", "uvloop"),
    *("asyncio", "pandas", "pyarrow", "scipy", "sklearn", "skl2onnx", "joblib", "duckdb", "locust", "gevent"),
    "cryptography",
)


VERBS = (
    *("serve", "restart", "demo", "convert", "models", "flags", "rollout", "cache", "shadow", "drift", "samples"),
    *("changes", "audit", "token", "keys", "webhooks", "loadtest"),
)


def test_help_lists_the_verbs_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from gateway.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('heavy:', sorted(set(sys.modules) & {set(HEAVY)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verbs = re.findall(r"^    (\w+)  +\w", done.stdout, re.MULTILINE)
    assert verbs == [*VERBS, "version"]
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: sluicegate {verb}" in capsys.readouterr().out


def leaves(capsys: pytest.CaptureFixture[str], *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command below *path*, with its help."""
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    text = capsys.readouterr().out
    verbs = re.findall(r"^    (\w+)(?:  +\w|\n)", text.partition("\nverbs:\n  VERB\n")[2], re.MULTILINE)
    if not verbs:
        yield path, text
    for verb in verbs:
        yield from leaves(capsys, *path, verb)


def test_every_command_says_what_it_does_and_those_that_print_have_json(capsys: pytest.CaptureFixture[str]) -> None:
    helps = dict(leaves(capsys))
    assert len(helps) > 40
    mute = [path for path, text in helps.items() if text.split("\n\n")[1].startswith(("options", "positional"))]
    assert mute == [("version",)]
    without = {path for path, text in helps.items() if "--json" not in text}
    assert without == {("serve",), ("demo",), ("version",), ("samples", "sql")}  # that has --format


def test_version_is_printed_by_verb_and_by_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"sluicegate {__version__}\n"
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sluicegate {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--nonsense"], ["serve", "--port", "http"]])
def test_usage_errors_exit_with_2_and_say_why(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: sluicegate" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--config", str(tmp_path / "absent.toml")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"sluicegate: cannot read the settings file {tmp_path}/absent.toml: No such file or directory\n"
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd) as broken:
        done = subprocess.run([*SLUICEGATE, "version"], stdout=broken, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_ends_quietly_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "settings.toml"
    os.mkfifo(fifo)
    waiting = subprocess.Popen(
        [*SLUICEGATE, "serve", "--print-config", "--config", str(fifo)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    with open(fifo, "w"):  # returns once the command has opened the other end, and now waits for its text
        waiting.send_signal(signal.SIGINT)
        _, printed = waiting.communicate(timeout=20)
    assert (waiting.returncode, printed) == (130, "")
