"""The capacity plan: its arithmetic, and that docs/scaling.md says what it prints and what RESULTS.md measured."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import capacity
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    "block", re.findall(r"```console\n\$ python benchmarks/capacity\.py (.*?)```", PAGE, re.DOTALL)
)
def test_the_page_shows_what_is_printed(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, _, shown = block.partition("\n")
    capacity.main(shlex.split(arguments))
    assert capsys.readouterr().out == shown


def test_the_figures_of_the_page_are_those_that_were_measured() -> None:
    rows = re.findall(
        r"^\| ([\w, ]+?)(?: of 100 trees)?(?:, cache off)? \| (\d+) \| ([\d.]+) µs \| ([\d,]+) \|$", PAGE, re.M
    )
    assert len(rows) == 4
    for work, connections, cpu_us, per_second in rows:
        found = re.search(rf"^\| {connections} \| {work} \|.*\| {per_second} \|.*\| {cpu_us} \|", RESULTS, re.MULTILINE)
        assert found is not None, work


def test_the_memory_is_that_which_was_measured() -> None:
    found = {name: float(mb) for name, mb in re.findall(r"^\| (\w[\w ]+) \|(?:[^|]*\|){3} ([\d.]+) \(", RESULTS, re.M)}
    assert round(found["worker after a second of load"]) == capacity.WORKER_MB
    assert round(found["sluicegate serve"]) - round(found["worker"]) == capacity.BESIDE_MB


def test_a_host_that_is_lost_leaves_the_others_no_busier_than_asked() -> None:
    for rps in (1, 900, 30_000, 1_000_000):
        load = capacity.Load(rps, 50, 0.6, 8, 1, 2, 10, 64)
        found = capacity.plan(load)
        left = (found.hosts - load.hosts_lost) * found.workers_per_host
        assert found.cores / left <= load.utilization
        assert (found.hosts - load.hosts_lost - 1) * found.workers_per_host * load.utilization < found.cores


@pytest.mark.parametrize(
    "wrong", ["--rps 0 --cpu-us 1", "--rps 1 --cpu-us 1 --utilization 2", "--rps 1 --cpu-us 1 --host-cores 1"]
)
def test_what_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(SystemExit):
        capacity.main(wrong.split())
