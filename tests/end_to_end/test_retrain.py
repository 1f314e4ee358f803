"""From drifted traffic to a pipeline: it is told to retrain, and what it is told leads it to the rows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow.parquet
import pytest

from gateway.cli import main
from tests.builders import classifier, write_package
from tests.control.process import RECEIVERS
from tests.end_to_end.test_drift import send
from tests.live import LiveGateway, SettingsTable, eventually
from tests.receiver import Receiver
from tests.samples.make import iris_rows


def test_a_pipeline_is_told_once_and_can_export_the_rows_that_drifted(
    models: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iris = classifier()
    write_package(models, iris, reference_rows=2000)
    settings: SettingsTable = {
        **RECEIVERS,
        "sampling": {"rate": 1.0},
        "monitor": {"poll_s": 0.05, "window_rows": 200},
        "control": {"name": "prod-7"},
    }
    with LiveGateway(models, state, settings=settings) as gateway, Receiver() as receiver:
        body = {"url": receiver.url, "events": ["retrain.*"]}
        secret = gateway.control.post("/admin/v1/webhooks", json=body).json()["secret"]
        shifted = iris_rows(600, 2)
        shifted[:, 1] += 1.0
        ids = send(gateway, "iris", iris.features, shifted)
        eventually(lambda: receiver.taken, "the pipeline is told")
        (arrival,) = receiver.taken
        arrival.check(secret)
        print(json.dumps(arrival.event, indent=1))
        assert (arrival.event["type"], arrival.event["subject"]) == ("dev.sluicegate.retrain.advised", "iris")
        told = arrival.event["data"]["after"]
        assert (told["version"], told["traffic"], told["why"][:26]) == ("1", "default", "iris 1 should be retrained")
        column = next(each for each in told["columns"] if each["name"] == "sepal_width")
        assert column["q"] < 0.05
        assert column["drifted_windows"] in (2, 3)  # more rows may have come before control looked
        assert (column["n_cur"], column["n_ref"]) == (200, 2000)
        assert set(column["prediction_ids"]) <= set(ids)
        for document in (gateway.control.get(told["document"]).json(), json.loads(Path(told["file"]).read_bytes())):
            assert [version["digest"] for version in document["versions"]] == [told["digest"]]

        monkeypatch.chdir(tmp_path)
        assert main([*shlex.split(told["export"])[1:], "--state", str(state)]) == 0
        exported = pyarrow.parquet.read_table(tmp_path / "iris-1.parquet")
        assert set(column["prediction_ids"]) <= set(exported["prediction_id"].to_pylist())
        assert receiver.types == ["retrain.advised"]
