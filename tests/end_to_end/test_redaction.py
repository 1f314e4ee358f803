"""What is to be redacted never comes to the disk: the whole state directory is searched for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.redaction import load_key, parse_rule
from gateway.samples.segments import SegmentReader
from tests.builders import classifier, write_mixed_package, write_package
from tests.live import LiveGateway, SettingsTable, eventually

CARD = {"stakes": "low", "redact": {"sepal_length": "drop", "sepal_width": "hash", "petal_length": "bucket 100 5000"}}
ROW = [7321.125, 6543.875, 4987.25, 0.5]


def logged(state: Path) -> dict[str, dict[str, Any]]:
    blocks = SegmentReader(state / "samples").read(10**9)
    records = [json.loads(line) for _file, block in blocks for line in block.splitlines()]
    return {record["prediction_id"]: record for record in records}


def test_no_byte_of_a_redacted_value_is_in_the_state_directory(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier(), card=CARD)
    write_mixed_package(tmp_path / "models")
    settings: SettingsTable = {
        "sampling": {"rate": 1.0, "sync_s": 0.01, "redact": "paint.colour = hash; iris.sepal_width = drop"},
        "cache": {"max_bytes": 0},
    }
    state = tmp_path / "state"
    with LiveGateway(tmp_path / "models", state, workers=2, settings=settings) as gateway:
        names = zip(("sepal_length", "sepal_width", "petal_length", "petal_width"), ROW, strict=True)
        iris = gateway.data.post("/predict/iris", json={"rows": [dict(names)]})
        paint = gateway.data.post("/predict/paint", json={"rows": [{"size": 1.5, "colour": "secret-crimson"}] * 2})
        wrong = gateway.data.post(
            "/predict/paint", json={"rows": [{"size": "secret-size", "colour": "secret-crimson"}]}
        )
        assert (iris.status_code, paint.status_code, wrong.status_code) == (200, 200, 400)
        eventually(lambda: len(logged(state)) == 2, "both answers are in the log")
    found = logged(state)
    record = found[iris.headers["x-prediction-id"]]
    assert record["inputs"] == {"petal_length": "[100, 5000)", "petal_width": 0.5}  # of drop and hash, drop holds
    assert record["redacted"] == ["petal_length", "sepal_length", "sepal_width"]
    colour = parse_rule("hash").replace("colour", "secret-crimson", load_key(state / "redaction.key"))
    assert found[paint.headers["x-prediction-id"]]["inputs"] == {"size": 1.5, "colour": colour}
    files = [path for path in state.rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    for path in files:
        content = path.read_bytes()
        for secret in (b"7321.125", b"6543.875", b"4987.25", b"secret-"):
            assert secret not in content, path


def test_a_card_that_redacts_a_name_that_the_model_has_not_keeps_the_version_out(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier(), card={"stakes": "low", "redact": {"sepal_lenght": "drop"}})
    with LiveGateway(tmp_path / "models", tmp_path / "state", wait=False) as gateway:
        gateway.wait_ready()
        reply = gateway.data.post("/predict/iris", json={"rows": [dict.fromkeys(("a",), 1)]})
        assert reply.status_code == 503
        eventually(lambda: "sepal_lenght" in gateway.control.get("/admin/v1/status").text, "the status says why")
