"""The compose file: read by docker-compose; its files are there, and the gateway takes its command and environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.children import FLUSH_GRACE_S
from gateway.settings import Settings
from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.deploy.prometheus import ALERTS, RULES
from tests.live import LiveGateway
from tests.postgres import PASSWORD, PASSWORD_IN_URL, USER

HERE = Path(__file__).parents[2] / "deploy" / "compose"
TOLD = {"SLUICEGATE_DB_PASSWORD": PASSWORD, "GRAFANA_PASSWORD": "g", "MODELS": "/srv/sluicegate/models"}


def config(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    require("docker-compose", "docker-compose")
    command = ["docker-compose", "--file", str(HERE / "compose.yaml"), "config"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    done = config(TOLD)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


@pytest.mark.parametrize("name", TOLD)
def test_no_password_nor_place_is_made_up(name: str) -> None:
    done = config({key: value for key, value in TOLD.items() if key != name})
    assert done.returncode != 0
    assert name in done.stderr


def test_all_that_is_mounted_or_built_from_here_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {"gateway", "postgres", "prometheus", "grafana"}
    for service in services.values():
        mounted = [Path(volume.split(":")[0]) for volume in service["volumes"] if volume.startswith(str(HERE.parent))]
        assert all(path.exists() for path in mounted)
    build = services["gateway"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).is_file()


def test_the_gateway_takes_its_command_and_listens_where_the_others_look(
    services: dict[str, Any], tmp_path: Path
) -> None:
    gateway = services["gateway"]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *gateway["command"], "--print-config"],
        cwd=tmp_path,
        env={**os.environ, **gateway["environment"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    effective = tomllib.loads(done.stdout)
    scraped = yaml.safe_load((HERE / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    (target,) = scraped[0]["targets"]
    assert target == f"gateway:{effective['metrics']['listen'].rpartition(':')[2]}"
    written = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]["gateway"]["ports"]
    published = {port.rpartition(":")[2] for port in written}
    assert published == {str(effective["server"]["port"]), str(effective["control"]["port"])}
    ends_s = Settings().server.drain_timeout_s + 2 * FLUSH_GRACE_S
    assert float(gateway["stop_grace_period"].removesuffix("s")) > ends_s


def test_the_password_of_the_database_goes_by_the_environment(
    services: dict[str, Any], models: Path, state: Path, database: str
) -> None:
    write_package(models, classifier())
    shipped = services["gateway"]["environment"]
    without = database.replace(f":{PASSWORD_IN_URL}@", "@")
    assert shipped["SLUICEGATE_FLAGS__STORE"].startswith(f"postgresql://{USER}@")
    environment = {"PGPASSWORD": shipped["PGPASSWORD"], "SLUICEGATE_FLAGS__STORE": without}
    with LiveGateway(models, state, environment=environment) as gateway:
        row = dict.fromkeys(classifier().features, 0.5)
        assert gateway.data.post("/predict/iris", json={"rows": [row]}).is_success
        assert PASSWORD not in gateway.log


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    require("promtool", "prometheus")
    for path in (HERE / "prometheus.yml", RULES, ALERTS):
        shutil.copy(path, tmp_path)
    done = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_is_told_where_its_dashboards_are_mounted(services: dict[str, Any]) -> None:
    told = yaml.safe_load((HERE / "grafana" / "dashboards" / "sluicegate.yaml").read_text())
    places = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    dashboards = Path(places[told["providers"][0]["options"]["path"]])
    assert [json.loads(path.read_text())["uid"] for path in dashboards.glob("*.json")]
