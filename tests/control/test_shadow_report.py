"""What is told of a shadow: sums of all workers, intervals that keep their word, a sentence; and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.shadow_report import SURE, flips_evidence, merged, report, sentence, wilson
from gateway.control.status import WorkerStatus
from gateway.flags.document import parse
from gateway.samples.pairs import PairSums, compare
from tests.control.process import ControlProcess, route

DIGESTS = {"digest": "d2", "base": "1", "base_digest": "d1"}


def sums(changes: list[float], flips: int = 0, **more: Any) -> PairSums:
    """Of one row per request, whose value moved so; the first *flips* of them got another label."""
    rows = len(changes)
    base = {"label": np.zeros(rows, np.int64), "value": np.ones((rows, 1))}
    shadow = {"label": (np.arange(rows) < flips).astype(np.int64), "value": 1 + np.array(changes).reshape(-1, 1)}
    found = compare(base, shadow, [1] * rows, {"label": "label", "value": "score"}) if rows else PairSums()
    found.merge(PairSums(**more))
    return found


def comparison(found: PairSums, since_s: float = 100.0, **more: Any) -> dict[str, Any]:
    return {**DIGESTS, "since": since_s, **found.to_json(), **more}


def worker(*comparisons: Any, slot: int = 0, state: str = "on", age_s: float = 0.0, version: str = "2") -> WorkerStatus:
    entry = {"model": "iris", "version": version, "rate": 0.1, "state": state, "comparisons": list(comparisons)}
    document = json.loads(json.dumps({"slot": slot, "shadow": [{"model": "wine"}, entry]}))
    return WorkerStatus(document, age_s)


@pytest.mark.parametrize(("trials", "share"), [(20, 0.5), (200, 0.02), (50, 0.9), (1000, 0.001)])
def test_the_interval_holds_the_true_share_about_as_often_as_it_says(trials: int, share: float) -> None:
    covered = 0.0
    for hits in range(trials + 1):
        low, high = wilson(hits, trials)
        assert 0 <= low <= hits / trials <= high <= 1
        chance = math.comb(trials, hits) * share**hits * (1 - share) ** (trials - hits)
        covered += chance if low <= share <= high else 0.0
    assert 0.91 < covered < 0.99


def test_known_intervals() -> None:
    assert wilson(10, 100) == pytest.approx((0.05523, 0.17437), abs=1e-5)  # Newcombe (1998), as many packages give it
    assert wilson(0, 1000) == pytest.approx((0.0, 0.003827), abs=1e-6)


@pytest.mark.parametrize("limit", [0.005, 0.02, 0.2])
def test_evidence_of_too_many_flips_keeps_its_word_at_every_look(limit: float) -> None:
    draw, runs, rows = np.random.default_rng(3), 200, 2000
    looks = range(20, rows + 1, 20)

    def ever(share: float) -> float:
        """The share of runs in which one who looks every twenty rows is ever told that there are too many."""
        counts = (draw.random((runs, rows)) < share).cumsum(axis=1)
        told = [any(flips_evidence(int(run[n - 1]), n, limit) >= SURE for n in looks) for run in counts]
        return sum(told) / runs

    assert ever(limit) <= 1 / SURE
    assert ever(4 * limit) > 0.8


def test_evidence_at_the_ends() -> None:
    assert flips_evidence(0, 0, 0.1) == 1.0
    assert flips_evidence(5, 5, 1.0) == 1.0
    assert flips_evidence(0, 10**9, 0.0) == 1.0
    assert flips_evidence(1, 10**9, 0.0) == math.inf
    assert flips_evidence(0, 10**6, 0.5) < 1e-6
    assert math.isfinite(flips_evidence(10**9, 10**9, 0.001))


@given(st.lists(st.lists(st.floats(0, 1e6), max_size=30), min_size=1, max_size=4))
def test_workers_add_up_to_what_one_worker_would_have_seen(parts: list[list[float]]) -> None:
    workers = [worker(comparison(sums(part, 1), since_s=9.0 - i), slot=i) for i, part in enumerate(parts) if part]
    everything = [change for part in parts for change in part]
    found = merged(workers, "iris")
    if not everything:
        assert found == []
        return
    (one,) = found
    assert (one.sums.rows, one.workers) == (len(everything), len(workers))
    assert one.since_s == min(float(w.document["shadow"][1]["comparisons"][0]["since"]) for w in workers)
    plain = one.to_json()["outputs"]
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        moved = np.abs(1 + np.array(everything) - 1)  # as the float64 values say it
        assert plain["value"]["change"][name] == pytest.approx(np.quantile(moved, q, method="inverted_cdf"), rel=0.0251)
    assert plain["label"]["flips"] == len(workers)


def test_other_packages_and_bases_are_told_apart_newest_first_and_nonsense_is_left_out() -> None:
    workers = [
        worker(comparison(sums([0.1]), 5.0), comparison(sums([0.2]), 7.0, base="3", base_digest="d3"), {"base": "1"}),
        worker(comparison(sums([0.3]), 6.0, digest="d2b"), comparison(sums([0.4]), 8.0), slot=1, age_s=60.0),
        WorkerStatus({"slot": 2, "shadow": None}, 0.0),
        WorkerStatus({"slot": 3}, 0.0),
    ]
    found = [(one.base, one.digest, one.sums.copies, one.since_s) for one in merged(workers, "iris")]
    assert found == [("3", "d2", 1, 7.0), ("1", "d2b", 1, 6.0), ("1", "d2", 2, 5.0)]
    assert merged(workers, "wine") == []


def words(found: PairSums) -> str:
    (one,) = merged([worker(comparison(found))], "iris")
    assert one.to_json()["sentence"] == sentence(one)
    return sentence(one)


def test_the_sentence_says_what_can_be_concluded() -> None:
    timed = {"timed": 200, "base_s": 2.0, "shadow_s": 2.5}
    assert words(sums([0.25] * 200, 4, failed={"error": 3, "timeout": 1}, dropped={"busy": 1200}, **timed)) == (
        "Version 2 ran 200 requests that version 1 had answered: 4 of 200 rows got another label in 'label' (2 %; "
        "0.78 % to 5 % with 95 % confidence); 'value' moved by up to 0.25, and by at most 0.25 in 99 % of the rows; it "
        "failed on 4 of 204 copies (3 error, 1 timeout); a run costs it 1.25 times as much, with the same "
        "inputs; 1,200 copies were not run (1,200 busy)."
    )
    assert words(sums([0.0] * 1000, timed=9, base_s=1.0, shadow_s=9.0)) == (
        "Version 2 ran 1,000 requests that version 1 had answered: none of 1,000 rows got another label in 'label' "
        "(below 0.38 % with 95 % confidence); 'value' is the same in all rows; it failed on none."
    )
    assert words(sums([], dropped={"inputs_differ": 7})) == (
        "Version 2 ran 0 requests that version 1 had answered: nothing can be concluded yet, since no pair could be "
        "compared; 7 copies were not run (7 inputs_differ)."
    )


@pytest.mark.parametrize(
    ("plain", "rate", "version", "note"),
    [
        (route(stable="1", shadow="2"), 0.1, "2", ""),
        (route(stable="1", shadow="2"), None, "2", "nothing is copied: set iris.shadow to a share above 0"),
        (route(), 0.1, None, "nothing is copied: iris.route has no variant 'shadow'"),
        (
            {**route(stable="1", shadow="2"), "state": "DISABLED"},
            0.1,
            None,
            "nothing is copied: iris.route is DISABLED",
        ),
        (
            route(stable="1", shadow="2", targeting={"fractional": [["shadow", 1], ["stable", 1]]}),
            0.1,
            None,
            "nothing is copied: clients could be given the variant 'shadow'",
        ),
    ],
)
def test_a_report_says_what_the_flags_want_and_what_each_worker_does(
    plain: Mapping[str, Any], rate: float | None, version: str | None, note: str
) -> None:
    flags: dict[str, Any] = {"iris.route": plain}
    if rate is not None:
        flags["iris.shadow"] = {"state": "ENABLED", "variants": {"x": rate}, "defaultVariant": "x"}
    workers = [worker(), worker(slot=1, state="not warm"), worker(slot=2, age_s=60.0), worker(slot=3, version="9")]
    found = report(parse({"flags": flags}), workers, "iris")
    assert (found["version"], found["note"], found["comparisons"]) == (version, note, [])
    assert found["workers"] == ({"0": "on", "1": "not warm"} if version else {})


def test_a_share_without_a_version_to_run_it_is_refused_at_write(shared: ControlProcess) -> None:
    share = {"state": "ENABLED", "variants": {"set": 0.1}, "defaultVariant": "set"}
    shared.write_status({"bold": {"1": "warm", "2": "warm"}})
    shared.put("bold.route", route(stable="1"))
    refused = shared.put("bold.shadow", share)
    assert refused.status_code == 422
    assert "flags set bold.route --declare shadow=VERSION" in refused.json()["detail"]
    shared.patch("bold.route", {"variants": {"shadow": "2"}})
    assert shared.put("bold.shadow", share).status_code == 201
    refused = shared.patch("bold.route", {"targeting": {"fractional": [["shadow", 1], ["stable", 99]]}})
    assert refused.status_code == 422
    assert "set that to 0 first" in refused.json()["detail"]
    # What takes the shadow away, or all traffic from the rules, is never refused.
    assert shared.patch("bold.route", {"state": "DISABLED"}).status_code == 200
    assert shared.patch("bold.route", {"state": "ENABLED", "variants": {"shadow": None}}).status_code == 200
    # The whole document at once: rules and share together.
    whole = {
        "flags": {
            "bold.route": {"variants": {"shadow": "2"}, "targeting": {"fractional": [["shadow", 0], ["stable", 1]]}}
        }
    }
    etag = shared.client.get("/admin/v1/flags").headers["etag"]
    headers = {"if-match": etag, "x-change-reason": "a test"}
    assert shared.client.patch("/admin/v1/flags", json=whole, headers=headers).status_code == 200


def test_the_report_is_told_to_viewers_and_a_model_that_is_not_there_is_named(shared: ControlProcess) -> None:
    shared.put("seen.route", route(stable="1", shadow="2"))
    with shared.client_as(None) as stranger:
        assert stranger.get("/admin/v1/models/seen/shadow").status_code == 401
    found = shared.client.get("/admin/v1/models/seen/shadow").json()
    assert (found["version"], found["comparisons"]) == ("2", [])
    missing = shared.client.get("/admin/v1/models/none/shadow")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")
