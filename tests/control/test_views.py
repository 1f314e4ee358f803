"""Looking only: workers, models, drift, metrics."""

from __future__ import annotations

import json
import subprocess
import sys

from gateway.models.manifest import NAME_PATTERN
from tests import builders
from tests.control.process import ControlProcess, route, split


def test_status_tells_what_every_worker_says_and_how_old_it_is(shared: ControlProcess) -> None:
    shared.write_status({"iris": {"1": "warm", "2": "failed: sha256 differs"}}, slot=0)
    shared.write_status({"iris": {"1": "warm"}}, slot=1, age_s=60)
    shared.write_status({"iris": {"1": "warm"}}, slot=0, boot="dead-boot", age_s=60)
    path = shared.run_dir / "status" / "worker-9.json"
    path.write_text('{"slot": 9')  # torn: this worker will write another
    found = shared.client.get("/admin/v1/status").json()
    assert found["boot"] == "boot-1"
    assert [(w["slot"], w["boot"], w["live"]) for w in found["workers"]] == [(0, "boot-1", True), (1, "boot-1", False)]
    assert found["workers"][0]["models"]["iris"]["versions"]["2"]["reason"] == "sha256 differs"
    assert found["workers"][0]["age_s"] < 3 < found["workers"][1]["age_s"]
    path.unlink()


def test_models_are_told_with_their_packages_and_their_state_on_every_worker(shared: ControlProcess) -> None:
    for version in ("1", "2", "3"):
        builders.write_package(shared.models, builders.classifier("shown", version))
    (shared.models / "shown" / "3" / "manifest.json").write_text("{")
    bare = shared.models / "shown" / "4"
    bare.mkdir()
    (bare / "model.onnx").write_bytes((shared.models / "shown" / "1" / "model.onnx").read_bytes())
    shared.write_status({"shown": {"1": "warm", "2": "warm"}}, slot=0)
    shared.write_status({"shown": {"1": "warm", "2": "loading"}}, slot=1)
    shared.put("shown.route", {**route(stable="1", canary="2", next="7"), "targeting": split(0)})
    (found,) = (m for m in shared.client.get("/admin/v1/models").json()["models"] if m["model"] == "shown")
    assert f'"{found["route_revision"]}"' == shared.etag("shown.route")
    versions = {v["version"]: v for v in found["versions"]}
    assert list(versions) == ["1", "2", "3", "4", "7"]
    facts = ("on_disk", "declared", "reachable", "warm")
    told = {name: tuple(version[fact] for fact in facts) for name, version in versions.items()}
    assert told == {
        "1": (True, True, True, True),
        "2": (True, True, False, False),
        "3": (True, False, False, False),
        "4": (True, False, False, False),
        "7": (False, True, False, False),
    }
    assert versions["2"]["workers"]["1"]["state"] == "loading"
    assert versions["1"]["manifest"].keys() >= {"created", "framework", "card"}
    assert "invalid" in versions["3"]["manifest"]
    assert versions["4"]["manifest"] is None
    assert versions["7"]["manifest"] is None


def test_a_manifest_with_parts_of_a_wrong_type_is_told_as_invalid_and_hides_no_other(shared: ControlProcess) -> None:
    for version, part in (("1", {"framework": "sklearn"}), ("2", {"card": [1]}), ("3", {"files": ["model.onnx"]})):
        package = builders.write_package(shared.models, builders.classifier("odd", version))
        manifest = json.loads((package / "manifest.json").read_text())
        (package / "manifest.json").write_text(json.dumps({**manifest, **part}))
    reply = shared.client.get("/admin/v1/models")
    assert reply.status_code == 200
    (found,) = (m for m in reply.json()["models"] if m["model"] == "odd")
    for version, field in zip(found["versions"], ("framework", "card", "files"), strict=True):
        assert f"{field} must be an object" in version["manifest"]["invalid"]


def test_a_drift_report_is_told_as_the_monitor_wrote_it(shared: ControlProcess) -> None:
    missing = shared.client.get("/admin/v1/models/iris/drift")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")
    path = shared.state / "drift" / "iris.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "model": "iris"}))
    assert shared.client.get("/admin/v1/models/iris/drift").json() == {"schema": 1, "model": "iris"}
    (shared.state / "secret.json").write_text("{}")
    for name in ("..%2Fsecret", "..", "iris.json%00"):
        assert shared.client.get(f"/admin/v1/models/{name}/drift").status_code == 404
    assert not NAME_PATTERN.fullmatch("../secret")


def test_the_metrics_page_merges_what_all_processes_count(shared: ControlProcess) -> None:
    script = (
        "from gateway.metrics import SupervisorMetrics, process_registry\n"
        "SupervisorMetrics(process_registry()).restarts.labels('worker').inc({})"
    )
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(shared.run_dir / "metrics")}
    for count in (2, 3):
        subprocess.run([sys.executable, "-c", script.format(count)], env=environment, check=True)
    page = shared.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert 'sluicegate_process_restarts_total{role="worker"} 5.0' in page.text
