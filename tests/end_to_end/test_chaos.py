"""`make chaos` in short: real processes are killed under load, and nothing that was acknowledged is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import sample_log
from faults.trial import Fault, Trial, table


def tried(tmp_path: Path, fault: Fault, rounds: int) -> Trial:
    trial = Trial(fault.name, rounds, 1, tmp_path, print)
    fault.inflict(trial)
    print(table([trial]))
    return trial


def test_kills_of_those_who_write_read_and_move_the_sample_log(tmp_path: Path) -> None:
    trial = tried(tmp_path, Fault("any", 10, sample_log.any_killed), 10)
    assert trial.broken == []
    assert (trial.done, trial.lost, len(trial.recovered_s)) == (10, 0, 10)
    assert trial.requests > 200


def test_a_broken_promise_is_counted_and_told() -> None:
    trial = Trial("cut cable", 2, 1, Path(), lambda _text: None)
    for turn in trial.turns():
        trial.must(turn == 0, f"round {turn} went wrong")
    trial.recovered_s += [0.5, 2.0, 1.0]
    assert trial.broken == ["round 1 went wrong"]
    assert table([trial]).splitlines()[-1] == "| cut cable | 2 | 0 | 0 | 0 | 1.00 s, 2.00 s |"


def test_the_moments_of_a_fault_follow_from_its_seed(tmp_path: Path) -> None:
    first, again, other = (Trial("x", 1, seed, tmp_path, print).draw.random() for seed in (1, 1, 2))
    assert first == again
    assert first != pytest.approx(other)
