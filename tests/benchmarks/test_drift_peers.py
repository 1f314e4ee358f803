"""The table of the drift rule beside others: what its shares mean, and that the rows are the same for all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import other_monitors
import pytest
from drift import Verdicts, draw
from drift_peers import NANNYML, RULES, line, main, quality


def said(columns: list[list[int]], whole: list[int]) -> Verdicts:
    return Verdicts(np.array(columns, dtype=np.bool_), np.array(whole, dtype=np.bool_))


def test_shares_are_of_windows_and_the_shifted_column_is_told_apart_from_the_others() -> None:
    clean = [said([[0, 1], [0, 0]], [0, 0]), said([[0, 0], [0, 0]], [0, 0])]
    shifted = [said([[1, 1], [1, 0]], [1, 0]), said([[1, 0], [0, 0]], [0, 0])]
    found = quality(clean, shifted, has_whole=True)
    assert (found.windows, found.clean, found.clean_whole) == (4, 0.25, 0.0)
    assert (found.found, found.found_whole, found.others) == (0.75, 0.25, 0.25)
    assert found.found_error == pytest.approx(0.25)
    assert quality(clean, shifted, has_whole=False).clean_whole is None
    assert "clean > 8%, found < 98%" in line(500, "x", found, 0.1)
    assert "| clean > 8% |" in line(200, "x", found, 0.1)


def test_of_more_windows_the_first_ones_are_the_same() -> None:
    few, many = draw(100, 2, 1), draw(100, 5, 1)
    assert np.array_equal(few.reference, many.reference)
    assert np.array_equal(few.shifted, many.shifted[:2])
    assert np.array_equal(few.clean, many.clean[:2])


def test_the_table_has_our_lines_and_says_what_is_not_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--windows", "6", "--references", "2", "--rows", "100", "200", "--environments", "nowhere"])
    out = capsys.readouterr().out
    assert [row.split(" | ")[:3] for row in re.findall(r"^\| \d.*", out, re.MULTILINE)] == [
        ["| 100", "Sluicegate", "6"],
        ["| 200", "Sluicegate", "6"],
    ]
    assert f"{RULES[NANNYML]}: left out, benchmarks/peers/setup nannyml" in out


@pytest.mark.parametrize("name", ["evidently", "nannyml"])
def test_all_that_another_monitor_needs_is_pinned_and_it_is_set_up_once_the_versions_are_there(
    name: str, tmp_path: Path
) -> None:
    wanted = (other_monitors.PEERS / name / "requirements.txt").read_text()
    lines = [line for line in wanted.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line)] == []
    assert other_monitors.versions(name).startswith(f"{name} ")
    assert not other_monitors.is_set_up(name, tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "requirements.txt").write_text(wanted)
    assert other_monitors.is_set_up(name, tmp_path)


def test_a_peer_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "nannyml" / "bin").mkdir(parents=True)
    python = tmp_path / "nannyml" / "bin" / "python"
    python.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="nannyml: no memory"):
        other_monitors.ask("nannyml", "windows.py", tmp_path, environments=tmp_path)
    python.write_text('#!/bin/sh\n[ -z "$PYTHONPATH" ] && echo "[1]" > "$2/answer.json"\n')
    assert other_monitors.ask("nannyml", "windows.py", tmp_path, environments=tmp_path) == [1]
