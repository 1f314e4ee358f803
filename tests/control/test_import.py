"""Flags taken from a file, once or followed: whole, audited, held to the rules; hands kept off but for kills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.control.process import ControlProcess, route, split
from tests.live import eventually

RATE = {"state": "ENABLED", "variants": {"some": 0.5}, "defaultVariant": "some"}


class FlagFile:
    """The file, as a deployment tool replaces it: at once, by a rename."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, flags: dict[str, Any], **more: Any) -> None:
        self.write_text(json.dumps({"$schema": "https://flagd.dev/schema/v0/flags.json", "flags": flags, **more}))

    def write_text(self, text: str) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.path)


@pytest.fixture
def file(tmp_path: Path) -> FlagFile:
    return FlagFile(tmp_path / "flags.json")


@pytest.fixture
def control(models: Path, state: Path, file: FlagFile) -> Iterator[ControlProcess]:
    """A control process that follows the file."""
    for version in ("1", "2"):
        write_package(models, classifier("iris", version))
    with ControlProcess(models, state, settings={"flags": {"import_file": str(file.path)}}) as process:
        yield process


def imported(control: ControlProcess) -> dict[str, Any]:
    found: dict[str, Any] = control.client.get("/admin/v1/status").json()["import"]
    return found


WARM = {"1": "warm", "2": "warm"}


def wait(control: ControlProcess, state: str, why: str = "", versions: dict[str, str] | None = None) -> dict[str, Any]:
    """Wait until the file is in that state. versions: of iris, as one worker reports them all the while."""

    def is_so() -> dict[str, Any] | None:
        if versions is not None:
            control.write_status({"iris": versions})
        found = imported(control)
        return found if found["state"] == state and why in found["why"] else None

    return eventually(is_so, f"the file is {state}")


def flags(control: ControlProcess) -> dict[str, Any]:
    found: dict[str, Any] = control.client.get("/admin/v1/flags").json()["flags"]
    return found


def test_a_file_is_followed_as_one_audited_revision_each_time(control: ControlProcess, file: FlagFile) -> None:
    wait(control, "missing", versions={"2": "warm"})
    assert flags(control)["iris.route"]["variants"] == {"stable": "2"}  # seeded: there is no file yet
    file.write({"iris.route": route(), "iris.sampling": RATE}, metadata={"version": "41"})
    wait(control, "waiting", versions={"2": "warm"})  # from 2 to 1, which no worker has loaded
    wait(control, "applied", versions=WARM)
    document = control.client.get("/admin/v1/flags").json()
    revision = document["metadata"]["revision"]
    assert document["metadata"]["version"] == "41"
    assert document["flags"]["iris.route"]["defaultVariant"] == "stable"
    assert document["flags"]["iris.sampling"]["variants"] == {"some": 0.5}
    rows = control.client.get("/admin/v1/flags/iris.route/history").json()["rows"]
    assert (rows[0]["verb"], rows[0]["actor"]) == ("flags.import", "flags.import_file")
    assert str(file.path) in rows[0]["reason"]
    assert imported(control)["sha256"][:16] in rows[0]["reason"]
    file.write({"iris.route": {**route(), "metadata": {"owner": "ml"}}})
    eventually(lambda: "owner" in flags(control)["iris.route"]["metadata"], "the next file")
    assert "iris.sampling" not in flags(control)
    assert control.client.get("/admin/v1/flags").json()["metadata"]["revision"] == revision + 1


def test_a_wrong_file_is_refused_whole_and_the_old_flags_stay(control: ControlProcess, file: FlagFile) -> None:
    good = {"iris.route": route()}
    file.write(good)
    wait(control, "applied")
    before = flags(control)
    whole = json.dumps({"flags": {"iris.route": route(targeting=split(10))}})
    for text, why in (
        (whole[: len(whole) // 2], "not JSON"),
        ("[]", "document"),
        (json.dumps({"flags": {**good, "iris.rout": route()}}), "flags.iris.rout"),
        (json.dumps({"flags": {"iris.route": route(targeting={"fractional": [["canary", 0.5]]})}}), "whole number"),
        (json.dumps({"flags": {}, "$evaluators": {"x": {"exec": []}}}), "$evaluators.x"),
        ("[" * 200 + "]" * 200, "nested"),
        ("", "not JSON"),
    ):
        file.write_text(text)
        assert why in wait(control, "refused", why)["why"]
        assert why in control.log
        assert flags(control) == before
    file.path.unlink()
    wait(control, "missing")
    assert flags(control) == before
    file.write_text(whole)
    wait(control, "applied", versions=WARM)
    assert flags(control)["iris.route"]["targeting"] == split(10)


def test_a_weight_waits_for_its_version_while_all_else_is_taken(control: ControlProcess, file: FlagFile) -> None:
    file.write({"iris.route": route(stable="1")})
    wait(control, "applied", versions=WARM)
    candidate = route(stable="1", canary="3", targeting=split(10))
    file.write({"iris.route": candidate, "iris.sampling": RATE})
    found = wait(control, "waiting", versions=WARM)
    assert "version 3 of 'iris' is unknown on worker 0" in found["why"]
    now = flags(control)
    assert "iris.sampling" in now
    assert now["iris.route"]["variants"] == {"stable": "1", "canary": "3"}  # declared, so that workers load it
    assert "targeting" not in now["iris.route"]
    revision = control.client.get("/admin/v1/status").json()["revision"]
    wait(control, "waiting", "sha256 differs", versions={**WARM, "3": "failed: sha256 differs"})
    assert control.client.get("/admin/v1/status").json()["revision"] == revision  # nothing is written while it waits
    wait(control, "applied", versions={**WARM, "3": "warm"})
    assert flags(control)["iris.route"]["targeting"] == split(10)


def refused(reply: httpx.Response, file: FlagFile) -> None:
    assert (reply.status_code, reply.json()["code"]) == (409, "flags_follow_file"), reply.text
    assert str(file.path) in reply.json()["detail"]


def test_hands_are_kept_off_but_for_kills_and_purges(control: ControlProcess, file: FlagFile) -> None:
    control.write_status({"iris": {"1": "warm", "2": "warm"}})
    file.write({"iris.route": route(targeting=split(10)), "wine.route": route(stable="1")})
    wait(control, "applied", versions=WARM)
    refused(control.patch("iris.route", {"targeting": split(0)}), file)
    refused(control.put("iris.sampling", RATE), file)
    any_revision, other = {"if-match": "*", "x-change-reason": "a test"}, {"flags": {"iris.sampling": RATE}}
    refused(control.client.delete("/admin/v1/flags/iris.route", headers=any_revision), file)
    refused(control.client.patch("/admin/v1/flags", json={"metadata": {"a": 1}}, headers=any_revision), file)
    refused(control.client.post("/admin/v1/flags:import", json=other, headers=any_revision), file)
    started = control.client.post(
        "/admin/v1/models/wine/rollouts",
        json={"strategy": "canary", "version": "2"},
        headers={"x-change-reason": "a test"},
    )
    refused(started, file)
    tried = control.patch("iris.route", {"targeting": split(50)}, dryRun="true").json()
    assert [(b["flag"], b["rule"]) for b in tried["blocked"]] == [("iris.route", "flags_follow_file")]
    assert control.patch("iris.route", {}).status_code == 200  # nothing to refuse

    killed = control.patch("iris.route", {"state": "DISABLED"})
    assert killed.status_code == 200
    assert killed.json()["metadata"]["killed"] is True
    purge = {"x-change-reason": "a test"}
    path = "/admin/v1/models/iris/cache:purge"
    assert control.client.post(path, json={}, headers=purge).status_code == 200
    file.write({"iris.route": {**route(targeting=split(20)), "metadata": {"owner": "ml"}}})
    eventually(lambda: flags(control)["iris.route"].get("targeting") == split(20), "the next file")
    now = flags(control)
    assert now["iris.route"]["state"] == "DISABLED"  # a file that was changed for something else undoes no kill
    assert "purged" in now["iris.cache"]["metadata"]
    refused(control.patch("iris.route", {"targeting": split(0)}), file)
    assert control.patch("iris.route", {"state": "ENABLED"}).status_code == 200
    wait(control, "applied")
    now = flags(control)["iris.route"]
    assert (now["state"], now["targeting"]) == ("ENABLED", split(20))
    assert now["metadata"].keys() == {"owner", "revision"}
    assert control.patch("iris.route", {"state": "DISABLED"}).status_code == 200
    file.write({"iris.route": {**route(), "state": "DISABLED"}})  # the file agrees: from now on it is its own word
    eventually(lambda: "killed" not in flags(control)["iris.route"]["metadata"], "the file has taken over")
    refused(control.patch("iris.route", {"state": "ENABLED"}), file)


def test_a_file_that_is_there_at_the_start_comes_before_any_seed(models: Path, state: Path, file: FlagFile) -> None:
    for model in ("iris", "wine"):
        for version in ("1", "2"):
            write_package(models, classifier(model, version))
    file.write({"iris.route": route(stable="1")})
    with ControlProcess(models, state, settings={"flags": {"import_file": str(file.path)}}) as control:
        rows = control.client.get("/admin/v1/flags/iris.route/history").json()["rows"]
        assert [row["verb"] for row in rows] == ["flags.import"]
        seeded = control.client.get("/admin/v1/flags/wine.route/history").json()["rows"]
        assert [row["verb"] for row in seeded] == ["flag.seed"]
        control.stop()
        file.write({"iris.route": route(stable="2")})
        control.start()
        now = eventually(lambda: flags(control).get("iris.route"), "the flags can be read")
        assert now["variants"] == {"stable": "2"}  # no worker is live that would have to warm it first
        assert flags(control)["wine.route"]["variants"] == {"stable": "2"}


def test_a_route_that_a_rollout_is_in_charge_of_waits_for_its_end(models: Path, state: Path, file: FlagFile) -> None:
    for version in ("1", "2"):
        write_package(models, classifier("wine", version))
    with ControlProcess(models, state) as control:
        control.write_status({"wine": WARM})
        reply = control.put("wine.route", route(stable="1"), etag=control.etag("wine.route"))
        assert reply.status_code == 200, reply.text
        plan, reason = {"strategy": "canary", "version": "2"}, {"x-change-reason": "a test"}
        begun = control.client.post("/admin/v1/models/wine/rollouts", json=plan, headers=reason)
        assert begun.status_code == 201, begun.text
        control.stop()
        control.settings["flags"] = {"import_file": str(file.path)}
        file.write({"wine.route": route(stable="1", other="2", targeting={}), "new.route": route(stable="1")})
        control.start()
        assert "in charge of wine.route" in wait(control, "waiting")["why"]
        now = flags(control)
        assert "new.route" in now
        assert "other" not in now["wine.route"]["variants"]
        killed = control.patch("wine.route", {"state": "DISABLED"})  # the kill switch ends the rollout
        assert killed.status_code == 200, killed.text
        wait(control, "applied")
        now = flags(control)["wine.route"]
        assert now["variants"] == {"stable": "1", "other": "2"}
        assert (now["state"], now["metadata"]["killed"]) == ("DISABLED", True)


# -- once ---------------------------------------------------------------------------------------------


def take(control: ControlProcess, document: Any, **query: str) -> httpx.Response:
    headers = {
        "if-match": control.client.get("/admin/v1/flags").headers["etag"],
        "x-change-reason": "from the repository",
    }
    return control.client.post("/admin/v1/flags:import", json=document, headers=headers, params=query)


def test_a_document_is_imported_once_whole_or_not_at_all(models: Path, state: Path) -> None:
    write_package(models, classifier("wine", "1"))
    with ControlProcess(models, state) as control:
        assert "import" not in control.client.get("/admin/v1/status").json()
        control.write_status({"iris": {"1": "warm", "2": "loading"}})
        control.put("iris.route", route())
        control.put("iris.sampling", RATE)
        document = {"flags": {"iris.route": route(targeting=split(10))}}
        tried = take(control, document, dryRun="true").json()
        assert [(b["flag"], b["rule"]) for b in tried["blocked"]] == [("iris.route", "version_not_warm")]
        assert 800 < tried["movedKeys"]["iris.route"]["moved"] < 1200
        assert {change["path"] for change in tried["diff"]} == {"/flags/iris.route/targeting", "/flags/iris.sampling"}
        cold = take(control, document)
        assert (cold.status_code, cold.json()["code"]) == (409, "version_not_warm")
        assert "iris.sampling" in flags(control)
        control.write_status({"iris": {"1": "warm", "2": "warm"}})
        done = take(control, document)
        assert done.status_code == 200
        assert done.json()["flags"].keys() == {"iris.route", "wine.route"}  # the seeded route of wine stays
        row = control.client.get("/admin/v1/flags/iris.route/history").json()["rows"][0]
        assert (row["verb"], row["reason"], row["actor"]) == ("flags.import", "from the repository", "admin")
        assert take(control, document).headers["etag"] == done.headers["etag"]
        assert take(control, {"metadata": {}}).status_code == 422
        no_base = {"x-change-reason": "x"}
        assert control.client.post("/admin/v1/flags:import", json=document, headers=no_base).status_code == 428
        assert control.patch("iris.route", {"targeting": split(0)}).status_code == 200  # hands are free
