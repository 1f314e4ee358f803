"""Recording and alerting rules, judged by promtool, and the runbook that each alert names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.programs import require
from tests.deploy.prometheus import ALERTS, RULES

CASES = Path(__file__).with_name("alerts.test.yml")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _promtool_is_there() -> None:
    require("promtool", "prometheus")


def alerts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return found


def test_the_rules_are_valid() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES, ALERTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    for path in (RULES, ALERTS, CASES):
        shutil.copy(path, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", tmp_path / CASES.name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_goes_without_a_case_in_which_it_fires() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == {rule["alert"] for rule in alerts()}


def test_each_alert_names_a_section_of_the_runbook_that_there_is() -> None:
    for rule in alerts():
        page, anchor = rule["annotations"]["runbook"].split("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        assert anchor == rule["alert"].lower()
        assert rule["alert"] in headings, f"{page} has no section {rule['alert']}"
        assert rule["labels"]["severity"] in ("page", "ticket")
