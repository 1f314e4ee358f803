"""The advice about threads: given when it is needed, and good enough to follow."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import settings, threads

KEYS = ("batching.intra_op_threads", "batching.run_threads", "server.workers")


def advice(now: dict[str, Any], processors: int) -> str | None:
    return threads.advice(settings.load(None, {}, now), processors)


@pytest.mark.parametrize(
    ("now", "processors", "expected"),
    [
        ((1, 1, 1), 1, None),
        ((2, 2, 2), 8, None),
        ((1, 1, 2), 1, "lower server.workers to 1"),
        ((4, 1, 2), 2, "lower batching.intra_op_threads to 1"),
        ((8, 1, 2), 8, "lower batching.intra_op_threads to 4"),
        ((1, 4, 2), 4, "lower batching.run_threads to 2"),
        ((4, 4, 4), 2, "lower batching.intra_op_threads to 1 and batching.run_threads to 1 and server.workers to 2"),
    ],
)
def test_what_is_lowered_and_how_far(now: tuple[int, int, int], processors: int, expected: str | None) -> None:
    assert advice(dict(zip(KEYS, now, strict=True)), processors) == expected


@given(now=st.tuples(*[st.integers(1, 256)] * 3), processors=st.integers(1, 512))
def test_who_follows_the_advice_gets_no_more_and_loses_no_processor(now: tuple[int, ...], processors: int) -> None:
    values = dict(zip(KEYS, now, strict=True))
    product = now[0] * now[1] * now[2]
    told = advice(values, processors)
    assert (told is None) == (product <= processors)
    if told is None:
        return
    lowered = values | {name: int(value) for name, value in re.findall(r"(\S+) to (\d+)", told)}
    assert all(lowered[name] <= values[name] for name in KEYS)
    assert advice(lowered, processors) is None
    assert lowered[KEYS[0]] * lowered[KEYS[1]] * lowered[KEYS[2]] * 2 > processors
