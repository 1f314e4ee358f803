"""Interleaved rounds, what is worth measuring, and processes that are ended whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from speed import against, machine
from speed.models import Model
from speed.rounds import Bench, Contender, values

from tests.live import eventually, is_running

BENCHMARKS = Path(against.__file__).parents[1]
IRIS, FOREST = (Model(name, Path("models"), [], Path("rows"), {}) for name in ("iris", "forest"))


def counting(seen: list[str], name: str, fails_at: int = 99) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        seen.append(name)
        if seen.count(name) == fails_at:
            raise RuntimeError("it fell over")
        return {"turn": float(seen.count(name))}

    return measure


def test_each_round_measures_each_contender_once(tmp_path: Path) -> None:
    seen: list[str] = []
    contenders = [Contender(name, measure=counting(seen, name)) for name in "abc"]
    found = Bench(tmp_path, rounds=20, seconds=1).interleave(contenders, what="test")
    rounds = ["".join(seen[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1  # by chance in the same order each time: once in 6**19
    assert values(found["b"], "turn") == list(range(1, 21))


def test_a_contender_that_fails_is_told_and_left_out_of_later_rounds(tmp_path: Path) -> None:
    seen: list[str] = []
    bench = Bench(tmp_path, rounds=5, seconds=1)
    contenders = [Contender("good", measure=counting(seen, "good")), Contender("bad", measure=counting(seen, "bad", 3))]
    found = bench.interleave(contenders, what="test")
    assert found["bad"] == [{"turn": 1.0}, {"turn": 2.0}, None, None, None]
    assert values(found["good"], "turn") == [1, 2, 3, 4, 5]
    assert bench.failures == ["test, bad: it fell over"]


def test_only_what_may_be_the_best_of_a_peer_is_measured_in_full() -> None:
    tried = {
        "batching": {"trials": {"iris@32": 1000.0, "iris@1": 80.0}},
        "plain": {"trials": {"iris@32": 950.0, "iris@1": 900.0}},
        "slow": {"trials": {"iris@32": 500.0}},
        "broken": {},
    }
    worth = {name: against.worth_measuring(tried, name, IRIS) for name in tried}
    assert worth == {"batching": [32], "plain": [32, 1], "slow": [], "broken": []}
    assert [against.worth_measuring(tried, name, FOREST) for name in ("batching", "slow")] == [[32], []]


def test_a_server_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "sleep 60 & echo $!; wait"
    with machine.pinned(["sh", "-c", script], log, {"TEST": "1"}) as process:
        child = eventually(lambda: int(log.read_text() or 0), "the child is there")
        eventually(lambda: child in machine.tree(process.pid), "the child is in the tree")
        process.kill()
    assert process.returncode is not None
    eventually(lambda: not is_running(child), "the child is gone")


def test_a_server_that_ends_before_it_answers_is_told(tmp_path: Path) -> None:
    with (
        machine.pinned(["false"], tmp_path / "log") as process,
        pytest.raises(machine.NotReady, match="exit code 1"),
    ):
        machine.wait_for(lambda: None, process, timeout_s=20)


def test_a_page_is_written_from_results_that_are_there(tmp_path: Path) -> None:
    about = {"cpu": "A", "cores": "2", "kernel": "6", "python": "3.11", "day": "2026-01-01", "revision": "abc"}
    part = {"machine": about, "rounds": 1, "seconds": 1, "failures": ["the disk was full"]}
    (tmp_path / "results.json").write_text(json.dumps({"doors": part}))
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--out", str(tmp_path)]
    told = subprocess.run([*command, "--page"], check=True, capture_output=True, text=True)
    assert "- doors: the disk was full" in told.stdout
    assert (tmp_path / "RESULTS.md").read_text() in told.stdout
    wrong = subprocess.run([*command, "--only", "nonsense"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no such part: nonsense" in wrong.stderr
