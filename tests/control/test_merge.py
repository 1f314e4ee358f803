"""Merge patches as RFC 7396 has them, and differences that say what a patch did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.merge import differences, merge

# the table of RFC 7396, appendix A
CASES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]
NAMES = st.sampled_from(["a", "b", "c/d", "e~f"])
VALUES = st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


@pytest.mark.parametrize(("target", "patch", "wanted"), CASES)
def test_a_patch_does_what_the_rfc_says(target: Any, patch: Any, wanted: Any) -> None:
    assert merge(target, patch) == wanted


@given(OBJECTS, OBJECTS)
def test_differences_lead_from_one_document_to_the_other(before: Any, after: Any) -> None:
    found = [*differences(before, after)]
    assert (not found) == (before == after)
    for difference in found:
        for name, document in (("before", before), ("after", after)):
            node = document
            *path, last = [part.replace("~1", "/").replace("~0", "~") for part in difference["path"].split("/")[1:]]
            for part in path:
                node = node[part]
            assert (last in node) == (name in difference)
            if name in difference:
                assert node[last] == difference[name]
