"""`make chaos` in short: faults are done to real processes under load; nothing acknowledged is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import disks, processes
from faults.trial import Fault, Trial, table


def tried(tmp_path: Path, fault: Fault, rounds: int) -> Trial:
    tmp_path.mkdir(exist_ok=True)
    trial = Trial(fault.name, rounds, 1, tmp_path, print)
    fault.inflict(trial)
    print(table([trial]))
    assert trial.broken == []
    assert (trial.done, trial.lost, len(trial.recovered_s)) == (rounds, 0, rounds)
    return trial


@pytest.mark.timeout(400)
def test_kills_over_the_whole_system_lose_no_row_label_alarm_or_edit(tmp_path: Path) -> None:
    trial = tried(tmp_path, Fault("any", 10, processes.anyone_killed), 10)
    assert trial.requests > 200


def test_a_disk_that_is_full_or_read_only_fails_no_prediction_and_loses_no_edit(tmp_path: Path) -> None:
    tried(tmp_path / "read-only", Fault("read-only", 1, disks.unwritable), 1)
    tried(tmp_path / "full", Fault("full", 2, disks.full), 2)


def test_a_broken_promise_is_counted_and_told() -> None:
    trial = Trial("cut cable", 2, 1, Path(), lambda _text: None)
    for turn in trial.turns():
        trial.must(turn == 0, f"round {turn} went wrong")
    trial.recovered_s += [0.5, 2.0, 1.0]
    trial.must_be_back(1.0, busy=0.3)
    trial.must_be_back(0.6, busy=2.0)
    assert trial.broken == ["round 1 went wrong"]
    assert table([trial]).splitlines()[-1] == "| cut cable | 2 | 0 | 0 | 0 | 1.00 s, 2.00 s |"
    trial.must_be_back(0.9, busy=1.0)
    assert trial.broken[1:] == ["all was as before after 1.00 s, not within 0.90 s"]


def test_the_moments_of_a_fault_follow_from_its_seed(tmp_path: Path) -> None:
    first, again, other = (Trial("x", 1, seed, tmp_path, print).draw.random() for seed in (1, 1, 2))
    assert first == again
    assert first != pytest.approx(other)
