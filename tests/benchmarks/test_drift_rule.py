"""The benchmark of the drift rule, small and seeded: seldom wrong, and it finds what it should."""

from __future__ import annotations

import pytest
from drift import main, measured


@pytest.mark.parametrize(("rows", "least"), [(200, 0.65), (500, 0.98)])
def test_clean_windows_seldom_alarm_and_a_third_of_a_deviation_in_one_of_20_columns_is_found(
    rows: int, least: float
) -> None:
    found = measured(rows, 60, references=6)
    assert found.clean <= 0.08
    assert found.alarmed <= 0.02
    assert found.apart <= 0.05
    assert found.found >= least


def test_without_a_shift_the_shifted_column_is_one_like_the_others() -> None:
    assert measured(200, 20, references=2, shift=0.0).found <= 0.1


def test_the_table_has_a_line_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--windows", "4", "--references", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| 200", "| 500", "| 1000", "| 5000"]
