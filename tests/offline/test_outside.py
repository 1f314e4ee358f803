"""Rows unlike all of the reference: counted as plain loops count them, and expected as often as they come by chance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.offline.drift import Column
from gateway.offline.outside import MAX_EXAMPLES, outside_of


def numeric(name: str, reference: list[float], current: list[float]) -> Column:
    return Column(name, "input", "numeric", np.array(reference), np.array(current))


def categorical(name: str, reference: list[str | None], current: list[str | None]) -> Column:
    return Column(name, "input", "categorical", np.array(reference, object), np.array(current, object))


def is_outside_number(value: float, others: list[float]) -> bool:
    present = [other for other in others if other == other]
    return bool(present) and (value < min(present) or value > max(present))


def is_new(value: str | None, others: list[str | None]) -> bool:
    present = {other for other in others if other is not None}
    return bool(present) and value is not None and value not in present


@given(st.data())
def test_rows_are_counted_and_expected_as_by_plain_loops(data: st.DataObject) -> None:
    then, now = (data.draw(st.integers(1, 12)) for _ in range(2))
    size = {"then": then, "now": now}
    some_numbers, some_names = (
        st.sampled_from([float("nan"), -1.0, 0.0, 0.5, 2.0]),
        st.sampled_from([None, "a", "b", "c"]),
    )
    x = {side: data.draw(st.lists(some_numbers, min_size=rows, max_size=rows)) for side, rows in size.items()}
    y = {side: data.draw(st.lists(some_names, min_size=rows, max_size=rows)) for side, rows in size.items()}
    output = Column("score", "output", "numeric", np.zeros(then), np.ones(now))
    ids = [f"p{index}" for index in range(now)]
    found = outside_of([numeric("x", x["then"], x["now"]), categorical("y", y["then"], y["now"]), output], ids)
    assert found is not None
    outside = [
        index
        for index in range(now)
        if is_outside_number(x["now"][index], x["then"]) or is_new(y["now"][index], y["then"])
    ]
    answers = outside_of([numeric("x", x["then"], x["now"]), output], ids, "output")
    assert answers is not None
    assert (answers.rows, answers.expected, answers.prediction_ids[0]) == (now, float(then == 1), ids[-1])
    assert found.rows == len(outside)
    assert found.share == len(outside) / now
    assert list(found.prediction_ids) == [ids[index] for index in outside[::-1]][:MAX_EXAMPLES]
    left_out = 0
    for index in range(then):
        others_x = x["then"][:index] + x["then"][index + 1 :]
        others_y = y["then"][:index] + y["then"][index + 1 :]
        # One value alone has no others to be held against: it is counted as an edge.
        alone_x = x["then"][index] == x["then"][index] and not any(other == other for other in others_x)
        alone_y = y["then"][index] is not None and not any(other is not None for other in others_y)
        left_out += (
            alone_x or alone_y or is_outside_number(x["then"][index], others_x) or is_new(y["then"][index], others_y)
        )
    assert found.expected == left_out / then


def test_clean_windows_are_seldom_above_the_bound_and_rows_from_elsewhere_are_found() -> None:
    """Twenty columns, half of them with heavy tails; a reference of its own for each window."""
    above = found = 0
    expected, seen = [], []
    for seed in range(300):
        dice = np.random.default_rng(seed)
        then, now = dice.normal(size=(1000, 20)), dice.normal(size=(400, 20))
        then[:, 10:], now[:, 10:] = np.exp(1.5 * then[:, 10:]), np.exp(1.5 * now[:, 10:])
        ids = [str(index) for index in range(400)]
        columns = [numeric(str(index), then[:, index].tolist(), now[:, index].tolist()) for index in range(20)]
        told = outside_of(columns, ids)
        assert told is not None
        above += told.is_above
        expected.append(told.expected)
        seen.append(told.share)
        now[-20:, 3] = 50.0  # 5 % come from elsewhere
        columns[3] = numeric("3", then[:, 3].tolist(), now[:, 3].tolist())
        told = outside_of(columns, ids)
        assert told is not None
        found += told.is_above and told.prediction_ids[0] == "399"
    print(f"outside: expected {np.mean(expected):.4f}, seen {np.mean(seen):.4f}; above {above}, found {found} of 300")
    assert above <= 3
    assert found >= 150
    assert abs(np.mean(expected) - np.mean(seen)) < 0.003


def test_without_features_rows_or_a_reference_nothing_is_told() -> None:
    assert outside_of([], ["p"]) is None
    assert outside_of([numeric("x", [1.0], [2.0])], ["p"], "output") is None
    label = Column("label", "output", "categorical", np.array(["a"], object), np.array(["b"], object))
    assert outside_of([label], ["p"], "output") is None
    assert outside_of([numeric("x", [1.0], [])], []) is None
    assert outside_of([numeric("x", [], [1.0])], ["p"]) is None
    empty = outside_of([numeric("x", [float("nan")] * 3, [1.0])], ["p"])
    assert empty is not None
    assert (empty.rows, empty.expected) == (0, 0.0)
