"""`sluicegate loadtest` as a process of its own against a real gateway: figures, promises, and an operator."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import classifier, regressor, write_package
from tests.end_to_end.flags import must_change, split, wait_warm
from tests.live import LiveGateway

TIMEOUT_S = 90


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("loadtest")
    models = root / "models"
    for linear in (classifier("iris", "1"), classifier("iris", "2"), regressor("house", "1")):
        write_package(models, linear, reference_rows=300)
    with LiveGateway(models, root / "state", workers=2) as live:
        must_change(live, "iris.route", {"variants": {"canary": "1"}})
        wait_warm(live, "iris", "1")
        must_change(live, "iris.route", {"targeting": split(20)})
        yield live


def loadtest(*arguments: str, token: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "loadtest", *arguments],
        env={**os.environ, "SLUICEGATE_TOKEN": token},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_load_test_checks_answers_and_flips_flags_while_it_runs(gateway: LiveGateway, tmp_path: Path) -> None:
    before = gateway.control.get("/admin/v1/flags/iris.route").json()
    reference = gateway.models / "iris" / "1" / "reference.parquet"
    found = loadtest(
        *(gateway.data_url, "--users", "8", "--time", "4s", "--classes", "named,binary,hot,two,operator"),
        *("--control-url", gateway.control_url, "--flip-every", "0.3", "--rows", f"iris={reference}"),
        *("--expect", "errors=0,rps=1,p99_ms=10000", "--html", "report.html", "--csv", "figures.csv"),
        token=gateway.admin_token,
        folder=tmp_path,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "all expectations met: errors=0, rps=1, p99_ms=10000" in found.stdout
    assert "iris: canary " in found.stdout
    assert "house: stable 100.0%" in found.stdout
    with (tmp_path / "figures.csv").open(newline="") as file:
        figures = {row["name"]: row for row in csv.DictReader(file)}
    assert {"named iris", "named house", "binary iris", "hot iris", "two iris", "change flag"} <= figures.keys()
    assert all(int(row["requests"]) > 0 and int(row["failures"]) == 0 for row in figures.values())
    assert "named iris" in (tmp_path / "report.html").read_text()
    after = gateway.control.get("/admin/v1/flags/iris.route").json()
    assert after["metadata"]["revision"] > before["metadata"]["revision"] + 4
    assert {**after, "metadata": 0} == {**before, "metadata": 0}


def test_a_broken_promise_gives_exit_code_1_and_is_named(gateway: LiveGateway) -> None:
    found = loadtest(
        *(gateway.data_url, "--users", "5", "--time", "2s", "--shape", "spike", "--classes", "binary"),
        *("--models", "house", "--expect", "p99_ms=0.001,requests=1", "--json"),
    )
    assert found.returncode == 1, found.stdout + found.stderr
    report = json.loads(found.stdout)
    assert len(report["broken"]) == 1
    assert report["broken"][0].startswith("p99_ms: expected at most 0.001, got ")
    assert f"expectation failed: {report['broken'][0]}" in found.stderr
    assert report["failures"] == 0
    assert report["variants"] == {"house": {"stable": report["predictions"]["requests"]}}


def test_an_operator_without_anything_to_flip_is_a_failure(gateway: LiveGateway) -> None:
    found = loadtest(
        *(gateway.data_url, "--users", "2", "--time", "1s", "--classes", "named,operator", "--models", "house"),
        *("--control-url", gateway.control_url, "--token-file", str(gateway.state / "admin.token")),
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "1 x read flag: no model has a route of two variants" in found.stdout


def test_a_gateway_that_is_not_there_is_named() -> None:
    found = loadtest("http://127.0.0.1:1", "--time", "1s")
    assert found.returncode == 1
    assert "http://127.0.0.1:1/v2/models: <urlopen error [Errno 111] Connection refused>" in found.stderr


def test_an_address_that_is_none_gives_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from gateway.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["loadtest", "localhost:8080"])
    assert ended.value.code == 2
    assert "expected the data plane as http://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--time", "soon"), "expected a time such as 30s, 5m or 1h30m, got 'soon'"),
        (("--time", "0s"), "expected at least one second"),
        (("--users", "0"), "expected a whole number of at least 1, got '0'"),
        (("--classes", "named,robots"), "'robots' is none of named, binary, hot, two, operator"),
        (("--classes", "operator"), "an operator alone loads nothing"),
        (("--classes", "named,operator"), "the operator needs --control-url"),
        (("--expect", "p98_ms=1"), "'p98_ms' is none of "),
        (("--expect", "errors=few"), "errors: expected a number of at least 0, got 'few'"),
    ],
)
def test_arguments_that_make_no_sense_give_exit_code_2(
    arguments: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gateway.cli import main

    monkeypatch.delenv("SLUICEGATE_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["loadtest", "http://127.0.0.1:1", *arguments])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
