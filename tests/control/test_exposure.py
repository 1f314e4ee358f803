"""No change sends more traffic to a version that some live worker has not warmed; less is always allowed."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flags.compile import compile_route
from gateway.flags.document import parse_flag
from gateway.flags.exposure import raised
from tests.control.process import ControlProcess, route, split

VARIANTS = {"stable": "1", "canary": "2", "other": "3"}


def compiled(targeting: Any = None, default: str = "stable", state: str = "ENABLED") -> Any:
    plain = {"state": state, "variants": VARIANTS, "defaultVariant": default, "targeting": targeting}
    return compile_route("iris", parse_flag("iris.route", plain))


def fractions(**weights: int) -> dict[str, Any]:
    return {"fractional": [[name, weight] for name, weight in weights.items()]}


TO_CANARY = {"if": [{"==": [{"var": "headers.x-v"}, "2"]}, "canary"]}
THEN_SPLIT = {"if": [{"==": [{"var": "headers.x-v"}, "2"]}, "canary", fractions(canary=5, stable=95)]}


@pytest.mark.parametrize(
    ("before", "after", "versions"),
    [
        (compiled(), compiled(), set()),
        (compiled(), compiled(fractions(canary=0, stable=100)), set()),
        (compiled(), compiled(fractions(canary=1, stable=99)), {"2"}),
        (compiled(fractions(canary=5, stable=95)), compiled(fractions(canary=6, stable=94)), {"2"}),
        (compiled(fractions(canary=6, stable=94)), compiled(fractions(canary=5, stable=95)), set()),
        (compiled(fractions(canary=1, stable=9)), compiled(fractions(canary=1000, stable=9000)), set()),
        (compiled(fractions(canary=50, stable=50)), compiled(), set()),
        (compiled(fractions(canary=50, stable=50)), compiled(state="DISABLED"), set()),
        (compiled(fractions(canary=50, stable=50), state="DISABLED"), compiled(fractions(canary=50, stable=50)), {"2"}),
        (compiled(), compiled(default="canary"), {"2"}),
        (compiled(fractions(canary=50, stable=50)), compiled(default="canary"), {"2"}),
        (compiled(fractions(canary=50, stable=50)), compiled(default="canary", state="DISABLED"), {"2"}),
        (compiled(default="canary"), compiled(default="stable"), {"1"}),
        (compiled(), compiled(TO_CANARY), {"2"}),
        (compiled(TO_CANARY), compiled(), set()),
        (compiled(TO_CANARY), compiled(THEN_SPLIT), {"2"}),
        (compiled(THEN_SPLIT), compiled(TO_CANARY), set()),
        (compiled(), compiled({"var": "headers.x-v"}), {"2", "3"}),
        (compiled({"var": "headers.x-v"}), compiled(TO_CANARY), set()),
        (None, compiled(), set()),
        (None, compiled(fractions(canary=1, stable=1)), {"2"}),
        (
            compiled(fractions(canary=10, other=10, stable=80)),
            compiled(fractions(canary=10, other=0, stable=90)),
            set(),
        ),
    ],
)
def test_exposure_rises_where_a_version_becomes_reachable_or_gets_more(
    before: Any, after: Any, versions: set[str]
) -> None:
    assert raised(before, after) == versions


def test_a_weight_waits_until_every_live_worker_has_the_version_warm(shared: ControlProcess) -> None:
    shared.put("warm.route", route())
    shared.write_status({"warm": {"1": "warm", "2": "warm"}}, slot=0)
    shared.write_status({"warm": {"1": "warm", "2": "loading"}}, slot=1)
    refused = shared.patch("warm.route", {"targeting": split(10)})
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["code"] == "version_not_warm"
    assert problem["blocking"] == [{"worker": 1, "version": "2", "state": "loading", "reason": ""}]
    assert "worker 1" in problem["detail"]
    tried = shared.patch("warm.route", {"targeting": split(10)}, dryRun="true").json()
    assert [blocked["blocking"] for blocked in tried["blocked"]] == [problem["blocking"]]
    shared.write_status({"warm": {"1": "warm", "2": "failed: sha256 differs"}}, slot=1)
    refused = shared.patch("warm.route", {"targeting": split(10)})
    assert refused.json()["blocking"][0]["reason"] == "sha256 differs"
    assert "sha256 differs" in refused.json()["detail"]
    shared.write_status({"warm": {"1": "warm"}}, slot=1)
    assert shared.patch("warm.route", {"targeting": split(10)}).json()["blocking"][0]["state"] == "unknown"
    shared.write_status({"warm": {"1": "warm", "2": "warm"}}, slot=1)
    assert shared.patch("warm.route", {"targeting": split(10)}).status_code == 200


def test_less_exposure_is_never_refused_however_the_workers_are(shared: ControlProcess) -> None:
    shared.write_status({"less": {"1": "warm", "2": "warm"}}, slot=0)
    shared.write_status({"less": {"1": "warm", "2": "warm"}}, slot=1)
    shared.put("less.route", route())
    assert shared.patch("less.route", {"targeting": split(50)}).status_code == 200
    for slot in (0, 1):  # everything is broken now, stable too
        shared.write_status({"less": {"1": "failed: gone", "2": "failed: gone"}}, slot=slot)
    assert shared.patch("less.route", {"targeting": split(60)}).status_code == 409
    assert shared.patch("less.route", {"targeting": split(40)}).status_code == 200
    assert shared.patch("less.route", {"targeting": split(0)}).status_code == 200
    assert shared.patch("less.route", {"state": "DISABLED"}).status_code == 200
    assert shared.patch("less.route", {"targeting": None}).status_code == 200
    assert shared.patch("less.route", {"variants": {"canary": None}}).status_code == 200
    assert shared.patch("less.route", {"variants": {"canary": "9"}}).status_code == 200  # declared, not reachable


def test_a_worker_that_no_longer_reports_holds_nothing_up(shared: ControlProcess) -> None:
    shared.write_status({"dead": {"2": "warm"}}, slot=0)
    shared.write_status({"dead": {"2": "loading"}}, slot=1, age_s=10)
    shared.put("dead.route", route())
    assert shared.patch("dead.route", {"targeting": split(10)}).status_code == 200
    shared.write_status({"dead": {"2": "loading"}}, slot=1)
    assert shared.patch("dead.route", {"targeting": split(20)}).status_code == 409
    # a status document of another boot counts as long as its worker is live
    shared.write_status({"dead": {"2": "warm"}}, slot=1)
    shared.write_status({"dead": {"2": "loading"}}, slot=0, boot="boot-2")
    assert shared.patch("dead.route", {"targeting": split(20)}).status_code == 409
    shared.write_status({"dead": {"2": "loading"}}, slot=0, boot="boot-2", age_s=10)
    assert shared.patch("dead.route", {"targeting": split(20)}).status_code == 200


def test_a_blue_green_flip_needs_green_warm_and_the_flip_back_needs_blue_warm(shared: ControlProcess) -> None:
    for slot in (0, 1):
        shared.write_status({"flip": {"1": "warm", "2": "declared"}}, slot=slot)
    shared.put("flip.route", route("blue", blue="1", green="2"))
    assert shared.patch("flip.route", {"defaultVariant": "green"}).status_code == 409
    for slot in (0, 1):
        shared.write_status({"flip": {"1": "warm", "2": "warm"}}, slot=slot)
    assert shared.patch("flip.route", {"defaultVariant": "green"}).status_code == 200
    assert shared.patch("flip.route", {"defaultVariant": "blue"}).status_code == 200


def test_a_version_moved_under_a_variant_counts_as_another_version(shared: ControlProcess) -> None:
    for slot in (0, 1):
        shared.write_status({"move": {"1": "warm", "2": "loading"}}, slot=slot)
    shared.put("move.route", route(stable="1"))
    refused = shared.patch("move.route", {"variants": {"stable": "2"}})
    assert refused.json()["code"] == "version_not_warm"


def test_the_whole_document_is_held_to_the_same_rule(shared: ControlProcess) -> None:
    for slot in (0, 1):
        shared.write_status({"bulk": {"1": "warm", "2": "loading"}}, slot=slot)
    shared.put("bulk.route", route())
    headers = {"if-match": shared.client.get("/admin/v1/flags").headers["etag"], "x-change-reason": "all at once"}
    patch = {"flags": {"bulk.route": {"targeting": split(10)}}}
    refused = shared.client.patch("/admin/v1/flags", json=patch, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "version_not_warm")
