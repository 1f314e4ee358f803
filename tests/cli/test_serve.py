"""`sluicegate serve` before it serves: its settings, and refusals that say what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway import settings
from gateway.cli import main


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> settings.Settings:
    assert main(["serve", "--print-config", *arguments]) == 0
    file = Path("printed.toml")
    file.write_text(capsys.readouterr().out)
    return settings.load(file, {}, {})


def test_print_config_prints_the_effective_settings_as_a_file_that_loads_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_CACHE__TTL_S", "7.5")
    found = printed_config(
        capsys,
        *("--models", "m", "--state", "s", "--host", "::1", "--port", "1", "--workers", "3"),
        *("--control-host", "h", "--control-port", "2", "--store", "sqlite:///f.sqlite"),
    )
    assert (found.paths.models, found.paths.state) == (Path("m"), Path("s"))
    assert (found.server.host, found.server.port, found.server.workers) == ("::1", 1, 3)
    assert (found.control.host, found.control.port) == ("h", 2)
    assert found.flag_store_path == Path("f.sqlite")
    assert found.cache.ttl_s == 7.5


def test_the_settings_file_of_the_current_directory_is_read_if_no_other_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("sluicegate.toml").write_text("[server]\nport = 1234\n")
    assert printed_config(capsys).server.port == 1234
    Path("other.toml").write_text("[server]\nworkers = 2\n")
    found = printed_config(capsys, "--config", "other.toml")
    assert (found.server.port, found.server.workers) == (8080, 2)


def test_a_missing_models_directory_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--models", "nowhere"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("sluicegate: there is no models directory nowhere; name one with --models DIR")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "role", "what"),
    [("--port", "serving", "the data plane"), ("--control-port", "control", "the control plane")],
)
def test_a_port_in_use_is_refused_by_number(
    option: str, role: str, what: str, models: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--models", str(models), "--state", str(state), "--host", "127.0.0.1", "--role", role]
        assert main(["serve", *options, option, str(port)]) == 1
    assert f"sluicegate: {what}: port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert not any(path.is_dir() for path in (state / "run").iterdir()), "nothing is left of the attempt"


def test_a_setting_out_of_bounds_is_refused_by_name(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--models", str(models), "--workers", "0"]) == 1
    assert "'server.workers' (command line): expected 1 to 256, got 0" in capsys.readouterr().err


def test_a_ready_file_in_a_directory_that_is_not_there_is_refused(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--models", str(models), "--ready-file", "nowhere/ready.json"]) == 1
    printed = capsys.readouterr().err
    assert printed.endswith("sluicegate: there is no directory nowhere for the ready file; create it\n")
    assert "no model packages yet: not ready until one arrives" in printed
