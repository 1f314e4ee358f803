"""What the monitor's process does not load, and that it gets on without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SAYS = """
import sys
from gateway.offline import memory
memory.keep_small()
import pyarrow
print(pyarrow.array([1, None, 3]).to_numpy(zero_copy_only=False).tolist())
from sklearn import metrics
print(float(metrics.accuracy_score(["a", "b"], ["a", "c"])))
print(pyarrow.default_memory_pool().backend_name)
print("pandas" in sys.modules)
"""


def test_columns_and_scores_need_no_pandas_though_it_is_installed() -> None:
    pytest.importorskip("pandas")
    told = subprocess.run([sys.executable, "-c", _SAYS], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n") == ["[1.0, nan, 3.0]", "0.5", "system", "False", ""]
