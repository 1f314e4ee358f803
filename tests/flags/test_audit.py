"""The hash chain finds whatever is done to it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Author, Head, from_json, next_row, verify


def chain(length: int) -> list[AuditRow]:
    rows: list[AuditRow] = []
    head = GENESIS
    author = Author("ada", token_id="t1", ip="127.0.0.1", request_id="r1")
    for i in range(length):
        row = next_row(
            head,
            author,
            now_s=1_800_000_000.25 + i,
            verb="flag.put",
            target="iris.route",
            revision=i + 1,
            before={"weight": i},
            after={"weight": i + 1, "text": "größer"},
            reason=f"step {i}",
        )
        rows.append(row)
        head = Head(row.seq, row.hash)
    return rows


def test_a_chain_that_nobody_touched_verifies_and_survives_json() -> None:
    rows = chain(5)
    assert rows[0].ts == "2027-01-15T08:00:00.250000Z"
    assert verify(rows) == Head(5, rows[-1].hash)
    assert verify(rows[2:], Head(2, rows[1].hash)) == Head(5, rows[-1].hash)
    again = [from_json(json.loads(json.dumps(row.to_json()))) for row in rows]
    assert verify(again) == verify(rows)
    assert verify([]) == GENESIS


@given(st.integers(0, 4), st.sampled_from([f.name for f in dataclasses.fields(AuditRow)]), st.booleans())
def test_any_edit_of_any_field_is_found(index: int, name: str, sealed_anew: bool) -> None:
    rows = chain(5)
    old = getattr(rows[index], name)
    new: Any = old + 1 if isinstance(old, int) else f"{old}x"
    rows[index] = dataclasses.replace(rows[index], **{name: new})
    if sealed_anew and name != "hash":  # whoever edits may also know how to hash
        rows[index] = rows[index].sealed()
    if sealed_anew and index == 4 and name not in ("seq", "prev", "hash"):
        assert verify(rows).hash != verify(chain(5)).hash  # only a head noted before tells
    else:
        with pytest.raises(AuditBroken):
            verify(rows)


@given(st.data())
def test_a_deletion_and_a_change_of_order_are_found(data: st.DataObject) -> None:
    rows = chain(6)
    gone = data.draw(st.integers(0, 4))
    with pytest.raises(AuditBroken, match="missing"):
        verify(rows[:gone] + rows[gone + 1 :])
    order = data.draw(st.permutations(rows).filter(lambda found: found != rows))
    with pytest.raises(AuditBroken):
        verify(order)


@pytest.mark.parametrize("wrong", [{}, [], {"seq": 1}, {**chain(1)[0].to_json(), "more": 1}])
def test_a_row_with_other_fields_is_refused(wrong: Any) -> None:
    with pytest.raises(AuditBroken, match="fields"):
        from_json(wrong)
