"""What is quarantined, told and lifted by the admin API."""

from __future__ import annotations

import pytest

from gateway import quarantine
from gateway.quarantine import Quarantined
from tests.control.process import ControlProcess, route, split

WHY = {"x-change-reason": "a newer runtime"}


def entry(version: str, digest: str = "d1", model: str = "iris") -> Quarantined:
    return Quarantined(model, version, digest, "two deaths", "2026-01-01T00:00:00.000Z")


def quarantined(control: ControlProcess, *entries: Quarantined) -> None:
    path = control.state / "quarantine.json"
    path.unlink(missing_ok=True)
    quarantine.add(path, entries)


def test_the_list_is_told_by_itself_and_with_the_status(shared: ControlProcess) -> None:
    assert shared.client.get("/admin/v1/quarantine").json() == {"versions": []}
    quarantined(shared, entry("2"))
    (told,) = shared.client.get("/admin/v1/quarantine").json()["versions"]
    assert told == {
        "model": "iris", "version": "2", "digest": "d1", "reason": "two deaths", "ts": "2026-01-01T00:00:00.000Z"
    }  # fmt: skip
    assert shared.client.get("/admin/v1/status").json()["quarantine"] == [told]


def test_a_lift_is_recorded_and_leaves_the_others(shared: ControlProcess) -> None:
    quarantined(shared, entry("1.0"), entry("2"), entry("1.0", "d2"), entry("1.0", model="wine"))
    lifted = shared.client.delete("/admin/v1/quarantine/iris/1.0", headers=WHY)
    assert lifted.status_code == 200
    assert [one["digest"] for one in lifted.json()["lifted"]] == ["d1", "d2"]
    left = shared.client.get("/admin/v1/quarantine").json()["versions"]
    assert [(one["model"], one["version"]) for one in left] == [("iris", "2"), ("wine", "1.0")]
    rows = [row for row in shared.client.get("/admin/v1/audit").json()["rows"] if row["verb"] == "quarantine.lift"]
    assert [(row["target"], row["reason"]) for row in rows] == [("quarantine:iris", WHY["x-change-reason"])] * 2
    assert rows[-1]["after"]["lifted"]["digest"] == "d2"
    again = shared.client.delete("/admin/v1/quarantine/iris/1.0", headers=WHY)
    assert (again.status_code, again.json()["code"]) == (404, "unknown_version")


def test_a_lift_needs_a_reason_and_the_scope_of_an_operator(shared: ControlProcess) -> None:
    quarantined(shared, entry("2"))
    assert shared.client.delete("/admin/v1/quarantine/iris/2").status_code == 400
    made = {scope: token(shared, scope) for scope in ("metrics", "viewer", "operator")}
    codes = {}
    for scope, secret in made.items():
        with shared.client_as(secret) as client:
            looked = client.get("/admin/v1/quarantine").status_code
            codes[scope] = (looked, client.delete("/admin/v1/quarantine/iris/2", headers=WHY).status_code)
    assert codes == {"metrics": (403, 403), "viewer": (200, 403), "operator": (200, 200)}
    with shared.client_as(None) as client:
        assert client.get("/admin/v1/quarantine").status_code == 401


def token(control: ControlProcess, scope: str) -> str:
    made = control.client.post("/admin/v1/tokens", json={"name": f"some-{scope}", "scope": scope})
    return str(made.json()["token"])


def test_a_list_that_cannot_be_read_is_told_and_is_not_lifted_from(shared: ControlProcess) -> None:
    path = shared.state / "quarantine.json"
    path.write_text("{")
    found = shared.client.get("/admin/v1/quarantine")
    assert (found.status_code, found.json()["code"]) == (503, "quarantine_unavailable")
    assert "remove it to lift all" in found.json()["detail"]
    assert shared.client.delete("/admin/v1/quarantine/iris/2", headers=WHY).status_code == 503
    assert shared.client.get("/admin/v1/status").json()["quarantine"] is None
    path.unlink()


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("quarantined", "lift it with"),
        ("loading", "declare it at weight 0"),
        ("failed", "mend its package"),
    ],
)
def test_a_refused_rise_says_what_to_do_next(control: ControlProcess, word: str, advice: str) -> None:
    control.write_status({"iris": {"1": "warm", "2": f"{word}: two deaths"}})
    assert control.put("iris.route", {**route(), "targeting": split(0)}).status_code == 201
    refused = control.patch("iris.route", {"targeting": split(10)})
    assert refused.status_code == 409
    assert f"version 2 of 'iris' is {word} on worker 0: two deaths" in refused.json()["detail"]
    assert advice in refused.json()["detail"]
