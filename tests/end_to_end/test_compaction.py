"""A running gateway makes its own log Parquet: nothing of what clients sent is lost, repeated or counted wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from gateway.cli import main
from tests.builders import classifier, write_package
from tests.end_to_end.test_drift import send, watched
from tests.live import LiveGateway, eventually
from tests.samples.make import iris_rows

IRIS = classifier()


def test_rows_go_from_requests_to_parquet_and_are_found_there(
    models: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(models, IRIS, reference_rows=500)
    settings = {
        "sampling": {"rate": 1.0, "segment_max_age_s": 0.1},
        "monitor": {"poll_s": 0.05, "window_rows": 400, "compact_after_s": 0.01},
        "labels": {"wait_s": 1.0},
    }
    log = state / "samples"
    ids: list[str] = []
    with LiveGateway(models, state, workers=2, settings=settings) as gateway:
        for seed in range(2):
            ids += send(gateway, "iris", IRIS.features, iris_rows(200, seed))
            watched(gateway, "iris", 10 * len(ids))
            eventually(lambda: list(log.rglob("*.parquet")) and not list(log.rglob("*.jsonl*")), "all is Parquet")
            gateway.kill("monitor")
        ids += send(gateway, "iris", IRIS.features, iris_rows(50, 9))
        assert watched(gateway, "iris", 450).rows_total == 450
        capsys.readouterr()
        query = "select prediction_id, count(*) as rows from samples group by 1"
        assert main(["samples", "sql", query, "--state", str(state), "--format", "jsonl"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert Counter({row["prediction_id"]: row["rows"] for row in found}) == Counter(dict.fromkeys(ids, 10))
        # The reader may have been in the way of the compactor, which then waits for half a minute.
        eventually(lambda: not list(log.rglob("*.jsonl*")), "all is Parquet", timeout_s=90)
        metrics = gateway.control.get("/metrics").text
        assert "sluicegate_compacted_rows_total" in metrics
        assert "sluicegate_compaction_rejected_lines_total 0.0" in metrics
    means = duckdb.execute(f"select count(*), avg(\"inputs.sepal_width\") from '{log}/**/*.parquet'").fetchone()
    sent = [iris_rows(200, 0), iris_rows(200, 1), iris_rows(50, 9)]
    assert means == (450, pytest.approx(sum(float(table[:, 1].sum()) for table in sent) / 450, abs=1e-6))
