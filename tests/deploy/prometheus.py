"""A real Prometheus for the tests, Debian's, with the files that we ship."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.live import eventually

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus"
CONFIGURATION = SHIPPED / "prometheus.yml"
RULES = SHIPPED / "sluicegate.rules.yml"
ALERTS = SHIPPED / "sluicegate.alerts.yml"


def replaced(text: str, places: Mapping[str, str]) -> str:
    """*text* with other places than the shipped ones, each of which must stand in it."""
    for shipped, here in places.items():
        assert shipped in text
        text = text.replace(shipped, here)
    return text


def install(directory: Path, places: Mapping[str, str]) -> Path:
    """Copy the configuration and its rules into *directory*; returns the path of the configuration."""
    for rules in (RULES, ALERTS):
        shutil.copy(rules, directory)
    path = directory / CONFIGURATION.name
    path.write_text(replaced(CONFIGURATION.read_text(), places))
    return path


@contextlib.contextmanager
def running(configuration: Path, root: Path) -> Iterator[httpx.Client]:
    """A client of the query API of a Prometheus with that configuration, which keeps its series in *root*."""
    log = root / "prometheus.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={root / 'series'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=stderr,
        )
    try:
        found = eventually(
            lambda: re.search(r'msg="Listening on".*? address=(127\.0\.0\.1:\d+)', log.read_text()),
            "prometheus listens",
        )
        with httpx.Client(base_url=f"http://{found[1]}") as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def results(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """What an instant query gives."""
    answer = prometheus.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}\n{answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found
