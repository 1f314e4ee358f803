"""The profile: samples of py-spy, counted by the file that the reader knows."""

from __future__ import annotations

import pytest
from speed import page, profile

RAW = """\
<module> (/x/gateway/__main__.py:3);run (/x/uvloop/__init__.py:92);run (/usr/lib/asyncio/runners.py:118) 60
<module> (/x/gateway/__main__.py:3);data_received (/x/gateway/serving/fastdoor.py:81) 20
<module> (/x/gateway/__main__.py:3);<listcomp> (/x/gateway/serving/fastdoor.py:99) 5
run (/x/gateway/models/runtime.py:95);run (/x/lib/site-packages/onnxruntime/capi/session.py:12) 15
nonsense
"""


def test_samples_are_counted_by_their_innermost_frame() -> None:
    assert profile.by_file(RAW) == {
        profile.LOOP: pytest.approx(0.6),
        "gateway/serving/fastdoor.py": pytest.approx(0.25),
        "onnxruntime/capi/session.py": pytest.approx(0.15),
    }


def test_the_page_shows_the_largest_shares_first() -> None:
    about = {"machine": {"cpu": "A", "cores": "2", "kernel": "6", "python": "3.11", "day": "2026-01-01",
                         "revision": "abc"}, "rounds": 10, "seconds": 2, "failures": []}  # fmt: skip
    shares = {"1": {"a.py": 0.2, "b.py": 0.795, "c.py": 0.005}, "32": {"a.py": 0.9, "b.py": 0.1}}
    told = page.render({"profile": {"series": {}, "shares": shares, **about}})
    section = told[told.index("## Where the time goes") :]
    assert section.index("| a.py | 20.0% | 90.0% |") < section.index("| b.py | 79.5% | 10.0% |")
    assert "c.py" not in section
