"""The bare loop beside which the gateway's rows are set: it runs the models that it is told to, as often as it says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from speed import bare_loop

from tests.builders import classifier, write_package


@pytest.mark.parametrize("has_second", [False, True])
def test_a_loop_says_how_many_rows_it_ran_in_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_second: bool
) -> None:
    monkeypatch.setattr(bare_loop, "SERVER_CORE", min(os.sched_getaffinity(0)))
    first, second = (write_package(tmp_path / "models", classifier("iris", version)) for version in ("1", "2"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([[5.1, 3.5, 1.4, 0.2]]))
    then = (second / "model.onnx", 4) if has_second else None
    loop = bare_loop.Loop(first / "model.onnx", rows, 8, then)
    assert loop.rows_per_s(0.1) > 0


def test_a_second_model_that_is_not_there_is_no_quiet_zero(tmp_path: Path) -> None:
    model = write_package(tmp_path / "models", classifier("iris", "1")) / "model.onnx"
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([[5.1, 3.5, 1.4, 0.2]]))
    with pytest.raises(Exception, match="exit status 1"):
        bare_loop.Loop(model, rows, 8, (tmp_path / "none.onnx", 4)).rows_per_s(0.1)
