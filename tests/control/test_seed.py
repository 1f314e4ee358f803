"""First routes: given to models without one, never changed afterwards."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from gateway.control.changes import Desk
from gateway.control.seed import SETTLED_AFTER_S, WHOLE_WITHIN_S, Seeder
from gateway.flags.sqlite import SqliteStore
from gateway.models.source import DirectorySource
from tests import builders
from tests.control.process import ControlProcess
from tests.live import eventually


def package(models: Path, model: str, version: str) -> Path:
    return builders.write_package(models, builders.classifier(model, version))


def flag(control: ControlProcess, key: str) -> dict[str, Any]:
    reply = control.client.get(f"/admin/v1/flags/{key}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_model_gets_a_route_to_its_highest_version_by_number(models: Path, state: Path) -> None:
    for version in ("2", "9", "10"):
        package(models, "iris", version)
    package(models, "wine", "2024-b")
    package(models, "wine", "2024-a")
    with ControlProcess(models, state) as control:
        iris = eventually(lambda: flag(control, "iris.route"), "iris has a route")
        assert (iris["variants"], iris["defaultVariant"], iris["state"]) == ({"stable": "10"}, "stable", "ENABLED")
        assert eventually(lambda: flag(control, "wine.route"), "wine too")["variants"] == {"stable": "2024-b"}
        row = control.client.get("/admin/v1/flags/iris.route/history").json()["rows"][0]
        assert (row["actor"], row["verb"]) == ("system", "flag.seed")


def test_later_models_are_routed_and_later_versions_only_listed(control: ControlProcess, models: Path) -> None:
    assert control.client.get("/admin/v1/flags").json()["flags"] == {}
    package(models, "iris", "1")
    eventually(lambda: flag(control, "iris.route"), "iris has a route")
    package(models, "iris", "2")
    package(models, "wine", "1")
    eventually(lambda: flag(control, "wine.route"), "wine has a route")
    assert flag(control, "iris.route")["variants"] == {"stable": "1"}
    listed = {model["model"]: model for model in control.client.get("/admin/v1/models").json()["models"]}
    assert [(v["version"], v["declared"]) for v in listed["iris"]["versions"]] == [("1", True), ("2", False)]


def test_a_route_is_not_deleted_while_it_would_be_seeded_again(control: ControlProcess, models: Path) -> None:
    package(models, "iris", "1")
    eventually(lambda: flag(control, "iris.route"), "iris has a route")
    headers = {"if-match": "*", "x-change-reason": "retired"}
    refused = control.client.delete("/admin/v1/flags/iris.route", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "change_refused")
    shutil.rmtree(models / "iris")
    assert control.client.delete("/admin/v1/flags/iris.route", headers=headers).status_code == 204


class FakeClock:
    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def seeder(models: Path, state: Path, clock: FakeClock) -> tuple[Seeder, SqliteStore]:
    store, source = SqliteStore(state / "flags.sqlite"), DirectorySource(models)
    desk = Desk(store, last_known_good=state / "flags.lkg.json", source=source, workers=list)
    return Seeder(source, desk, clock=clock), store


def keys(store: SqliteStore) -> set[str]:
    document = store.load()
    return set(document.flags) if document is not None else set()


def test_a_package_that_is_still_being_copied_is_waited_for(models: Path, state: Path) -> None:
    clock = FakeClock()
    scanner, store = seeder(models, state, clock)
    path = package(models, "iris", "1") / "model.onnx"
    whole = path.read_bytes()
    for part in (10, 20, 30):
        path.write_bytes(whole[:part])
        os.utime(path, (clock.now_s, clock.now_s))
        scanner.scan()
        assert keys(store) == set()
        clock.now_s += 0.5
    path.write_bytes(whole)
    os.utime(path, (clock.now_s, clock.now_s))
    scanner.scan()
    assert keys(store) == set()
    scanner.scan()  # nothing has changed since
    assert keys(store) == {"iris.route"}
    store.close()


def test_an_old_package_is_seeded_at_first_sight_and_files_from_the_future_at_the_second(
    models: Path, state: Path
) -> None:
    clock = FakeClock()
    scanner, store = seeder(models, state, clock)
    for path in package(models, "old", "1").iterdir():
        os.utime(path, (0, clock.now_s - SETTLED_AFTER_S - 1))
    scanner.scan()
    assert keys(store) == {"old.route"}
    for path in package(models, "future", "1").iterdir():
        os.utime(path, (0, clock.now_s + 3600))
    scanner.scan()
    assert keys(store) == {"old.route"}
    scanner.scan()
    assert keys(store) == {"old.route", "future.route"}
    store.close()


def test_a_first_start_waits_a_moment_for_all_packages_and_routes_them_as_one_revision(
    models: Path, state: Path
) -> None:
    clock = FakeClock()
    scanner, store = seeder(models, state, clock)
    for path in package(models, "old", "1").iterdir():
        os.utime(path, (0, clock.now_s - SETTLED_AFTER_S - 1))
    on_its_way = package(models, "late", "1") / "model.onnx"
    for turn in range(3):  # its files change from look to look
        os.utime(on_its_way, (0, clock.now_s + turn))
        scanner.scan()
        assert keys(store) == set()
    scanner.scan()
    assert keys(store) == {"old.route", "late.route"}
    document = store.load()
    assert document is not None
    assert document.revision == 1
    store.close()


def test_a_first_start_does_not_wait_for_ever(models: Path, state: Path) -> None:
    clock = FakeClock()
    scanner, store = seeder(models, state, clock)
    for path in package(models, "old", "1").iterdir():
        os.utime(path, (0, clock.now_s - SETTLED_AFTER_S - 1))
    os.utime(package(models, "late", "1") / "model.onnx", (0, clock.now_s))
    clock.now_s += WHOLE_WITHIN_S
    os.utime(models / "late" / "1" / "model.onnx", (0, clock.now_s))
    scanner.scan()
    assert keys(store) == {"old.route"}
    store.close()


def test_directories_that_are_no_packages_are_passed_over(models: Path, state: Path) -> None:
    (models / "empty" / "1").mkdir(parents=True)
    (models / ".hidden" / "1").mkdir(parents=True)
    (models / ".hidden" / "1" / "model.onnx").write_bytes(b"x")
    (models / "README.md").write_text("models")
    (models / "draft" / ".tmp-1").mkdir(parents=True)
    (models / "draft" / ".tmp-1" / "model.onnx").write_bytes(b"x")
    scanner, store = seeder(models, state, FakeClock())
    scanner.scan()
    scanner.scan()
    assert keys(store) == set()
    store.close()


def test_a_missing_models_directory_is_no_error(models: Path, state: Path) -> None:
    models.rmdir()
    scanner, store = seeder(models, state, FakeClock())
    scanner.scan()
    assert keys(store) == set()
    store.close()
