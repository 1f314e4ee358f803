"""The bodies of the codecs' benchmark: what is compared does the same work."""

from __future__ import annotations

import subprocess
import sys

import bodies
import numpy as np
import pytest

CASES = bodies.cases()


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("read")], ids=lambda case: case.name)
def test_all_ways_to_read_a_body_give_the_same_numbers(case: bodies.Case) -> None:
    found = case.codec().inputs["input"]
    np.testing.assert_array_equal(found, case.plain())
    if case.checked is not None:
        np.testing.assert_array_equal(found, case.checked())


def test_the_table_has_a_row_for_each_body() -> None:
    command = [sys.executable, bodies.__file__, "--rounds", "1"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert table.count("\n| read") + table.count("\n| write") == len(CASES)
    barred = [case for case in CASES if case.has_bar]
    assert table.count(" | met |") + table.count(" | missed |") == len(barred)
    assert f" of {len(barred)} large bodies " in table
