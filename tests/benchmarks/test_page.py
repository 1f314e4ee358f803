"""Bars and the page of results, from figures that are made up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench import with_others
from speed import against, bars, doors, features, kept, machine, open_loop, page, plots, rows, start
from speed.bars import Bar
from speed.rounds import as_part, ratios, values

ABOUT: dict[str, Any] = {
    "machine": {"cpu": "A", "cores": "2", "kernel": "6", "python": "3.11", "day": "2026-01-01", "revision": "abc"},
    "rounds": 3,
    "seconds": 1,
    "failures": [],
}


def sample(rate: float, **more: float) -> dict[str, float]:
    figures = {"requests_per_s": rate, "cpu_us": 1e6 / rate, "busy": 0.5, "others": 0.1}
    return {**figures, "p50_ms": 1e3 / rate, "p99_ms": 2e3 / rate, "p999_ms": 3e3 / rate, **more}


def series(*rates: float, **more: float) -> list[dict[str, float] | None]:
    return [sample(rate, **more) for rate in rates]


def everything() -> dict[str, Any]:
    """Results of all parts, one peer not set up, one round of another failed."""
    memory = {"rss_bytes": 1e8, "pss_bytes": 9e7}
    empty = {f"{doors.EMPTY}@{count}": series(1000, 1100, 900) for count in doors.CONNECTIONS}
    ours = {
        f"{name}@{count}": series(1500, 1550, 1440)
        for name in (doors.IRIS, doors.HOT, doors.FOREST)
        for count in doors.CONNECTIONS
    }
    costs = {features.ON: 1000, features.OFF: 1100, features.UNIQUE: 990, features.TWO: 800}
    loaded = {name: series(100, 100, rows_per_s=3200.0) for name in rows.ROWS_PER_REQUEST}
    loops: dict[str, Any] = {rows.LOOP.format(name): [{"rows_per_s": 4000.0}] * 2 for name in ("mlp", "forest")}
    late = {"late_p99_ms": 0.1, "behind": 0.0}
    places = {
        f"iris@{count}": {
            "configuration": "batching",
            "series": {against.OURS: series(3000, 3300, 2700), against.THEIRS: [sample(1000), None, sample(900)]},
        }
        for count in doors.CONNECTIONS
    }
    tried = {
        "settings": "32 rows",
        "trials": {"iris@32": 990.0},
        "start_s": 0.5,
        "rss_bytes": 10**8,
        "pss_bytes": 10**8,
    }
    peers = {
        "mosec": {"title": "mosec", "set_up": True, "versions": "mosec 1", "configurations": {"batching": tried},
                  "places": places},
        "bentoml": {"title": "BentoML", "set_up": False},
    }  # fmt: skip
    return {
        "doors": {**as_part({**empty, **ours}, memory={doors.EMPTY: memory}), **ABOUT},
        "features": {**as_part({name: series(rate, rate) for name, rate in costs.items()}), **ABOUT},
        "rows": {**as_part({**loaded, **loops}, best_batch={"mlp": 64, "forest": 16}), **ABOUT},
        "poisson": {
            **as_part({open_loop.IRIS: series(500, 500, **late)}, peak_per_s={open_loop.IRIS: 1000.0}),
            **ABOUT,
        },
        "start": {
            **as_part({name: [{**memory, "start_s": 0.7}] for name in (start.SERVE, start.WORKER, start.LOADED)}),
            **ABOUT,
        },
        "peers": {"peers": peers, **ABOUT, "failures": ["BentoML, iris: it ended\nwith exit code 1"]},
    }


def found(results: dict[str, Any], number: str) -> list[Bar]:
    return [bar for bar in bars.all_of(results) if bar.number == number]


def test_ratios_are_taken_round_by_round_where_both_were_measured() -> None:
    own, other = [sample(30), None, sample(50), sample(70)], [sample(10), sample(10), None, sample(20)]
    assert ratios(own, other, "requests_per_s") == [3.0, 3.5]
    assert values(own, "requests_per_s") == [30, 50, 70]


@pytest.mark.parametrize(
    ("bar", "said"),
    [
        (Bar("1", "", [1.5, 1.3, 1.6], 1.4, True, 1.7), "met"),
        (Bar("1", "", [1.8, 1.7, 1.2], 1.4, True, 1.7), "met, and the goal"),
        (Bar("1", "", [0.7, 0.7], 1.4, True, 1.7), "**missed** by 50%"),
        (Bar("7", "", [1.2], 1.0, False, 0.9), "**missed** by 20%"),
        (Bar("7", "", [1.0], 1.0, False), "met"),
        (Bar("5", "", [1.0], 1.0, False, strict=True), "**missed** by 0%"),
        (Bar("5", "", [], 1.0, True), "not measured"),
    ],
)
def test_a_bar_says_whether_it_is_met_and_by_how_much_it_is_missed(bar: Bar, said: str) -> None:
    assert page.verdict(bar) == said


def test_bars_are_computed_from_the_series_that_they_name() -> None:
    results = everything()
    assert found(results, "1")[0].values == [1.5, 1550 / 1100, 1.6]
    assert found(results, "4")[0].values == [1000 / 1500, 1100 / 1550, 900 / 1440]
    assert [bar.median for bar in found(results, "6")] == [0.8, 0.8, 0.8]
    assert [round(bar.median or 0, 3) for number in "789" for bar in found(results, number)] == [1.1, 1.01, 1.25]
    assert found(results, "10")[0].values == [4.0, 4.0]
    assert [bar.median for bar in found(results, "11")] == [100, 100, 0.7, 0.7]
    over_mosec = [bar for bar in found(results, "5") if "mosec, 32" in bar.what and bar.what.startswith("iris")]
    assert over_mosec[0].values == [3.0, 3.0]


def test_every_bar_stands_on_the_page_even_if_nothing_was_measured() -> None:
    shown = page.render({})
    lines = [line for line in shown.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(lines) == len(bars.all_of({}))
    assert {int(line.split("|")[1]) for line in lines} == set(range(1, 12))
    assert all(line.endswith("| not measured |") for line in lines)


def test_the_page_tells_ratios_failures_and_who_is_missing() -> None:
    shown = page.render(everything())
    assert "| 1 | iris, cache off: requests/s over the empty app, 32 connections | 1.50 (1.41 to 1.60) |" in shown
    assert "- peers: BentoML, iris: it ended with exit code 1" in shown
    assert "Not set up, so not measured: BentoML." in shown
    assert "| mosec | iris, 32 | batching | 2 | 3.00 (3.00 to 3.00) |" in shown
    assert "10% (up to 10%)" in shown
    assert "Resident memory after the load, MB: empty app 100 (PSS 90)." in shown


def test_peers_that_were_not_measured_again_stay_as_they_were_with_their_own_day() -> None:
    results = everything()
    now = {**ABOUT, "machine": {**ABOUT["machine"], "day": "2031-01-01"}}
    again = {"peers": {"bentoml": {"title": "BentoML", "set_up": False}}}
    results["peers"] = {**with_others(results["peers"], again, now), **now}
    shown = page.render(results)
    assert f"| peers: mosec | {ABOUT['machine']['day']} |" in shown
    assert "| peers: BentoML | 2031-01-01 |" in shown
    assert "| mosec | iris, 32 | batching | 2 | 3.00 (3.00 to 3.00) |" in shown


@pytest.mark.parametrize("part", ["doors", "features", "rows", "poisson", "start", "peers"])
def test_a_part_that_failed_as_a_whole_leaves_the_others_on_the_page(part: str) -> None:
    results = everything()
    whole = page.render(results)
    results[part] = {**ABOUT, "failures": ["out of memory"]}
    shown = page.render(results)
    assert f"- {part}: out of memory" in shown
    assert whole.count("not measured") < shown.count("not measured")


def test_results_are_kept_with_a_line_per_measurement(tmp_path: Path) -> None:
    results = everything()
    assert kept.read(tmp_path) == {}
    kept.write(results, tmp_path)
    again = kept.read(tmp_path)
    for before, after in zip(bars.all_of(results), bars.all_of(again), strict=True):
        assert after.values == pytest.approx(before.values, rel=1e-4)
    measured = sum(len(samples) for samples in results["doors"]["series"].values())
    lines = [line for line in (tmp_path / kept.FILE).read_text().splitlines() if '"p50_ms"' in line]
    assert len(lines) > measured
    assert all(line.count('"p50_ms"') == 1 for line in lines)


def test_plots_that_are_on_the_page_are_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page.write(everything(), tmp_path)
    linked = re.findall(r"\(plots/([a-z]+\.svg)\)", (tmp_path / "RESULTS.md").read_text())
    assert linked == list(plots.ABOUT)
    assert all((tmp_path / "plots" / name).read_text().startswith("<?xml") for name in linked)


def test_processor_time_and_memory_of_a_process_tree_are_found() -> None:
    import os

    pids = machine.tree(os.getpid())
    assert pids[0] == os.getpid()
    before_s = machine.cpu_s(pids)
    while machine.cpu_s(pids) == before_s:
        sum(range(10_000))
    assert machine.memory([os.getpid()]).rss_bytes >= machine.memory([os.getpid()]).pss_bytes // 2 > 0
    assert 0 < machine.started_at_s(os.getpid()) < machine.now_s()
