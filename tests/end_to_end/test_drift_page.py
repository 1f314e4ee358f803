"""The drift page of a real run, as a real browser sees it: all of it is there, nothing is loaded, nothing complains."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.cli import main
from gateway.offline.alarmed import KINDS
from tests.browser import Tab, browser
from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, must_change
from tests.live import LiveGateway, SettingsTable, eventually
from tests.samples.make import iris_rows

IRIS = classifier()


def ask_and_label(gateway: LiveGateway, rows: int, seed: int, *, shift: float, right: float, tier: str) -> list[str]:
    """Predictions, ten rows a request, and a label for each row; a share of them confirms the prediction.

    Returns the prediction ids.
    """
    asked = []
    dice = random.Random(seed)
    table = iris_rows(rows, seed)
    table[:, 0] = table[:, 0].round()  # few values, by which performance is told, too
    table[:, 1] += shift
    table[:, 3] = np.where(np.arange(rows) % 5 == 4, 40.0 * shift, table[:, 3])  # some rows come from elsewhere
    for start in range(0, rows, 10):
        body = {"rows": [dict(zip(IRIS.features, row, strict=True)) for row in table[start : start + 10].tolist()]}
        reply = gateway.data.post("/predict/iris", json=body, headers={"x-tier": tier})
        assert reply.status_code == 200, reply.text
        name = reply.headers["x-prediction-id"]
        asked.append(name)
        answers = IRIS.answer(table[start : start + 10])["label"].tolist()
        labels = [int(label) if dice.random() < right else (int(label) + 1) % 3 for label in answers]
        items = [{"prediction_id": name, "row": row, "label": label} for row, label in enumerate(labels)]
        assert gateway.data.post("/v1/feedback", json=items).status_code == 200
    return asked


def document(gateway: LiveGateway) -> Any:
    reply = gateway.control.get("/admin/v1/models/iris/drift")
    return reply.json() if reply.status_code == 200 else None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a gateway whose traffic has moved and whose model got worse, with a canary beside it."""
    root = tmp_path_factory.mktemp("page")
    models, state = root / "models", root / "state"
    write_package(models, IRIS, reference_rows=1000)
    settings: SettingsTable = {
        "sampling": {"rate": 1.0},
        "monitor": {"poll_s": 0.05, "window_rows": 200},
        "labels": {
            "wait_s": 1,
            "window_rows": 100,
            "reference_windows": 3,
            "slice_feature": "sepal_length",
            "detectors": "adwin,page_hinkley,ddm",
            "detectors_tell": "alarm",
        },
    }
    asked: list[str] = []
    with LiveGateway(models, state, workers=1, settings=settings) as live:
        write_package(models, classifier(version="2"), reference_rows=1000)
        declare(live, "iris", "canary", "2")
        by_tier = {"if": [{"==": [{"var": "headers.x-tier"}, "gold"]}, "canary", "stable"]}
        revision = must_change(live, "iris.route", {"targeting": by_tier})

        def adopted() -> bool:
            workers = live.control.get("/admin/v1/status").json()["workers"]
            return bool(workers) and all(worker["revision"] >= revision for worker in workers)

        eventually(adopted, "the worker knows the rule")
        asked += ask_and_label(live, 300, 1, shift=0.0, right=0.9, tier="usual")
        for seed in range(2, 8):
            asked += ask_and_label(live, 100, seed, shift=1.0, right=0.5, tier="usual")
            ask_and_label(live, 40, seed, shift=2.0, right=0.8, tier="gold")

        def is_all_there() -> bool:
            found = document(live)
            if found is None or not found["performance"]:
                return False
            versions = {version["version"]: version for version in found["versions"]}
            decays = [each for each in found["performance"]["versions"] if each["version"] == "1"]
            return bool(
                "1" in versions and versions["1"]["alarms"] and decays and len(decays[0].get("windows", ())) >= 6
            )

        eventually(is_all_there, "alarms and labels are in the document", timeout_s=60.0)

        seeds = itertools.count(8)

        def canary_alarms() -> bool:
            found = next(version for version in document(live)["versions"] if version["version"] == "2")
            if found["beside"] is not None and found["beside"]["alarms"]:
                return True
            seed = next(seeds)  # as traffic goes on, rows of both fall into each window
            asked.extend(ask_and_label(live, 50, seed, shift=1.0, right=0.5, tier="usual"))
            ask_and_label(live, 50, seed, shift=2.0, right=0.8, tier="gold")
            return False

        eventually(canary_alarms, "the canary alarms beside the default version", timeout_s=60.0)

        def is_told() -> bool:
            rows = live.control.get("/admin/v1/audit", params={"limit": 100}).json()["rows"]
            told = str([row["after"] for row in rows if row["verb"] == "alarm.drift"])
            return all(f"{name} by labels" in told for name in ("accuracy", "adwin")) and "against 1" in told

        eventually(is_told, "every kind of alarm is in the trail", timeout_s=60.0)
        metrics = live.control.get("/metrics").text
        assert 'sluicegate_error_drift{detector="adwin",model="iris",version="1"} 1.0' in metrics
        alarms = {
            (version, kind): float(count)
            for kind, version, count in re.findall(
                r'^sluicegate_drift_alarms{kind="(\w+)",model="iris",version="(\d)"} (\S+)$', metrics, re.MULTILINE
            )
        }
        assert set(alarms) == {(version, kind) for version in "12" for kind in KINDS}
        for key in (("1", "reference"), ("1", "labels"), ("1", "detectors"), ("2", "beside")):
            assert alarms[key] >= 1, key
        assert alarms["1", "beside"] == 0
        page = root / "drift.html"
        report = ["drift", "report", "iris", "--url", live.control_url, "--token-file", str(state / "admin.token")]
        with redirect_stdout(io.StringIO()) as printed:
            assert main([*report, "--html", str(page)]) == 0
        assert "adwin by labels: drifted (" in printed.getvalue()
        lines = printed.getvalue().splitlines()
        for name in ("sepal_width", "sepal_width against 1", "accuracy by labels", "adwin by labels"):
            place = next(index for index, line in enumerate(lines) if line.startswith(f"  ALARM {name}: "))
            shown = subprocess.run(  # what is printed is what a shell takes
                ["bash", "-c", lines[place + 1].replace("sluicegate", f"{sys.executable} -m gateway", 1)],
                env={**os.environ, "SLUICEGATE_PATHS__STATE": str(state)},
                capture_output=True,
                text=True,
            )
            assert (shown.returncode, shown.stderr) == (0, ""), shown.stderr
            assert len(shown.stdout.splitlines()) >= 10, shown.stdout
        assert re.search(r"sepal_width +│ reference +│ +│ +-?\d", printed.getvalue())
        assert "more than the bound" in printed.getvalue()
        metrics = live.control.get("/metrics").text
        assert 'sluicegate_outside_ratio{model="iris",version="1"} 0.2' in metrics
        outside = next(version for version in document(live)["versions"] if version["version"] == "1")["outside"]
        assert len(outside["prediction_ids"]) == 10
        assert set(outside["prediction_ids"]) < set(asked)
    return page


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_page_opens_without_a_complaint_or_a_request_and_fits(
    written: Path, tab: Tab, width: int, scheme: str
) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(written, width=width, scheme=scheme)
    if folder := os.environ.get("SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"drift-{width}-{scheme}.png")
    assert tab.complaints == []
    assert tab.requests == [written.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 19, 24)"}[scheme]
    # No text of a plot is cut by its edge.
    cut = tab.evaluate(
        "[...document.querySelectorAll('.card svg text')].filter(one => { const a = one.getBoundingClientRect(),"
        " b = one.closest('.card').getBoundingClientRect(); return a.left < b.left || a.right > b.right; })"
        ".map(one => one.textContent)"
    )
    assert cut == []


def test_all_that_the_document_has_is_on_the_page(written: Path, tab: Tab) -> None:
    tab.open(written, width=1280)
    words = " ".join(tab.evaluate("document.body.innerText").split())
    for said in (
        "sepal_width (feature) has other values than in the reference",
        "sepal_width (feature) has other values than in version 1 at the same time",
        "accuracy (by labels) got worse: ",
        "adwin (by labels) found a change for the worse at ",
        "Its rows, on the gateway's host: sluicegate samples tail --model iris --version 1 --since ",
        "Beside version 1 at the same time",
        "Windows one after the other",
        "Day by day and hour by hour",
        "All features together",
        "Performance by labels",
        "Does it get worse?",
        "Changes for the worse are told as drift is.",
        "Data quality",
        "have a feature beyond its range or a category that it does not have: more than chance explains.",
        "Columns now, against the reference",
        "delay p50 / p90 / p99",
        "sepal_length = ",
        "log loss",
    ):
        assert said in words
    titles = tab.evaluate("[...document.querySelectorAll('svg title')].map(title => title.textContent)")
    assert {
        "accuracy by labels, window by window",
        "chance said, and share that came true",
        "sepal_width by hour",
        "label by day",
    } <= set(titles)
    cells = tab.evaluate("[...document.querySelectorAll('td')].map(cell => cell.textContent)")
    assert not {"undefined", "None", "nan", "NaN"} & set(cells)


def test_a_page_that_asks_for_something_or_complains_is_noticed(tmp_path: Path, tab: Tab) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><script>console.error('bad'); undefinedName()</script><img src='missing.png'>")
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(page, width=800)
    assert any("bad" in one for one in tab.complaints)
    assert any("undefinedName" in one for one in tab.complaints)
    assert [one.rsplit("/", 1)[1] for one in tab.requests] == ["bad.html", "missing.png"]
