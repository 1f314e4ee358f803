"""The orders of a child survive the way to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gateway import children, settings
from gateway.children import ChildSpec

SPEC = ChildSpec(
    role="worker",
    slot=3,
    boot="20260101T000000abcd",
    run_dir=Path("/var/lib/sluicegate/run/x"),
    settings=settings.load(None, {}, {"paths.models": "/srv/models", "sampling.rate": 0.5}),
    socket_fd=7,
    report_fd=8,
    lifeline_fd=9,
)


@pytest.mark.parametrize(
    "spec",
    [
        dataclasses.replace(SPEC, marks_fd=10, suspects=frozenset({("iris", "1"), ("wine", "2.0")})),
        dataclasses.replace(SPEC, role="monitor", slot=0, socket_fd=None),
    ],
)
def test_orders_are_read_as_they_were_written(spec: ChildSpec) -> None:
    assert children.parse(spec.to_json()) == spec


def test_children_are_named_after_their_slot() -> None:
    assert SPEC.name == "worker-3"
    assert dataclasses.replace(SPEC, role="control", slot=0).name == "control"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown role 'gardener'"):
        children.parse(SPEC.to_json().replace(b'"worker"', b'"gardener"'))
