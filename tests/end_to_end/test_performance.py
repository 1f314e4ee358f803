"""From the label to the report: what the monitor says of a model that real clients labelled is what they know of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.cli import main
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually
from tests.samples.make import iris_rows

IRIS = classifier()
ROWS = 300


def variant(gateway: LiveGateway) -> dict[str, Any]:
    section = gateway.control.get("/admin/v1/models/iris/drift").json().get("performance")
    assert section, "no label was read yet"
    assert len(section["variants"]) == 1
    (found,) = section["variants"]
    return {**found, "labels": section["labels"]}


def test_late_repeated_and_disordered_labels_over_http_give_the_truth(
    models: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 % of the labels come after the wait, 5 % twice, all in another order than the predictions; the monitor is
    killed in between."""
    dice = random.Random(1)
    write_package(models, IRIS, reference_rows=500)
    settings: SettingsTable = {
        "sampling": {"rate": 1.0},
        "monitor": {"poll_s": 0.05},
        "labels": {"wait_s": 20, "window_rows": 50, "reference_windows": 2},
    }
    with LiveGateway(models, state, workers=2, settings=settings) as gateway:
        table = iris_rows(ROWS, 3)
        truth = [int(label) if dice.random() < 0.85 else dice.randrange(3) for label in IRIS.answer(table)["label"]]
        items = []
        for row, label in zip(table.tolist(), truth, strict=True):
            reply = gateway.data.post("/predict/iris", json={"rows": [dict(zip(IRIS.features, row, strict=True))]})
            items.append({"prediction_id": reply.headers["x-prediction-id"], "label": label})
        order = dice.sample(range(ROWS), ROWS)
        in_time, late = order[: ROWS * 9 // 10], order[ROWS * 9 // 10 :]
        repeated = in_time[: ROWS // 20]
        for part in (in_time[::2], [*in_time[1::2], *repeated]):
            reply = gateway.data.post("/v1/feedback", json=[items[index] for index in part])
            assert reply.json() == {"accepted": len(part), "rejected": 0}

        wanted = float(np.mean([IRIS.answer(table)["label"][index] == truth[index] for index in in_time]))

        def is_true(field: str, rows: int) -> dict[str, Any] | None:
            found = variant(gateway)
            return found if found[field] == rows else None

        found = eventually(lambda: is_true("waiting_labelled", len(in_time)), "the labels are read")
        assert abs(found["scores"]["accuracy"] - wanted) <= 1e-12
        gateway.kill("monitor")
        found = eventually(lambda: is_true("over", ROWS), "the wait is over", timeout_s=60)
        reply = gateway.data.post("/v1/feedback", json=[items[index] for index in late])
        assert reply.json()["accepted"] == len(late)

        eventually(
            lambda: variant(gateway)["labels"]["read"] == len(in_time) + len(repeated) + len(late),
            "the late ones are read",
        )
        found = variant(gateway)
        print({name: found[name] for name in ("over", "labelled", "coverage", "delay_s", "labels")}, found["scores"])
        assert (found["labelled"], found["coverage"]) == (len(in_time), len(in_time) / ROWS)
        assert abs(found["scores"]["accuracy"] - wanted) <= 1e-12
        labels = found["labels"]
        assert (labels["matched"], labels["repeated"], labels["late"]) == (len(in_time), len(repeated), len(late))
        assert labels["unmatched"] == 0

        told = 'sluicegate_performance{metric="accuracy",model="iris",variant="stable",version="1"}'
        value = next(
            line.split()[-1] for line in gateway.control.get("/metrics").text.splitlines() if line.startswith(told)
        )
        assert float(value) == found["scores"]["accuracy"]
        report = ["drift", "report", "iris", "--url", gateway.control_url, "--token-file", str(state / "admin.token")]
        assert main(report) == 0
        printed = capsys.readouterr().out
        print(printed)
        assert f"labels of stable: {len(in_time)} of {ROWS} rows (90.0% of those that no longer wait)" in printed
        assert "accuracy 0." in printed
        assert "accuracy by labels: stable (" in printed
        assert "calibration error 0." in printed
        assert " in a window of 50 rows; at first 0." in printed
