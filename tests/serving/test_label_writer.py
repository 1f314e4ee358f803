"""The label writer: what it said yes to is on the disk, what it cannot take it refuses, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import InvalidInput, LabelsUnavailable
from gateway.labelling import LabelSettings
from gateway.metrics import ServingMetrics, process_registry
from gateway.samples.labels import LabelReader, from_line
from gateway.serving.label_writer import LabelWriter
from gateway.settings import SamplingSettings

PLENTY = 2**40


class Disk:
    """A disk that says how much is free, once it is let go on."""

    def __init__(self) -> None:
        self.free = PLENTY
        self.released = threading.Event()
        self.released.set()
        self.entered = threading.Event()

    def __call__(self, _path: Path) -> int:
        self.entered.set()
        self.released.wait(20)
        return self.free


def body(*names: str) -> bytes:
    return json.dumps([{"prediction_id": name, "label": 1} for name in names]).encode()


def kept(root: Path) -> list[str]:
    return [from_line(line).prediction_id for block in LabelReader(root).read(10**8) for line in block.splitlines()]


def run(
    root: Path, test: Callable[[LabelWriter, Disk], Coroutine[Any, Any, None]], **settings: Any
) -> dict[str, float]:
    """Run *test* with a writer; returns what it counted, by outcome."""
    registry = process_registry()
    disk = Disk()

    async def main() -> None:
        writer = LabelWriter(
            replace(LabelSettings(), **settings),
            SamplingSettings(min_free_bytes=1000),
            root,
            boot="b1",
            metrics=ServingMetrics(registry),
            free_bytes=disk,
        )
        writer.start()
        try:
            await test(writer, disk)
        finally:
            disk.released.set()
            await asyncio.to_thread(writer.close, 10)

    asyncio.run(main())
    outcomes = ("accepted", "invalid", "refused")
    return {name: registry.get_sample_value("sluicegate_labels_total", {"outcome": name}) or 0 for name in outcomes}


def test_a_yes_means_that_the_labels_are_in_the_log_and_each_wrong_item_is_told(tmp_path: Path) -> None:
    async def test(writer: LabelWriter, _disk: Disk) -> None:
        items = [{"prediction_id": "p0", "label": 1}, {"prediction_id": "p1"}, {"prediction_id": "p2", "label": "b"}]
        taken = await writer.offer(json.dumps(items).encode())
        assert (taken.accepted, taken.wrong) == (2, 1)
        assert [(item, error.field) for item, error in taken.rejected] == [(1, "items[1].label")]
        assert kept(tmp_path) == ["p0", "p2"]
        with pytest.raises(InvalidInput):
            await writer.offer(b'{"prediction_id": "p3"}')
        with pytest.raises(InvalidInput):
            await writer.offer(body("a", "b", "c", "d"))
        assert kept(tmp_path) == ["p0", "p2"]

    assert run(tmp_path, test, max_items=3) == {"accepted": 2, "invalid": 3, "refused": 0}


def test_while_the_disk_is_stuck_what_fits_waits_and_the_rest_is_refused_at_once(tmp_path: Path) -> None:
    async def test(writer: LabelWriter, disk: Disk) -> None:
        disk.released.clear()
        first = writer.offer(body("p0"))
        await asyncio.to_thread(disk.entered.wait, 20)
        size = len(body("p1"))
        waiting = [writer.offer(body(f"p{index}")) for index in range(1, 4)]
        with pytest.raises(LabelsUnavailable):
            writer.offer(body("p4"))
        assert not any(future.done() for future in (first, *waiting))
        assert kept(tmp_path) == []
        disk.released.set()
        assert [(await future).accepted for future in (first, *waiting)] == [1, 1, 1, 1]
        assert sorted(kept(tmp_path)) == ["p0", "p1", "p2", "p3"]
        assert (await writer.offer(body("x" * size))).accepted == 1  # there is room again

    assert run(tmp_path, test, max_queue_bytes=3 * len(body("p1"))) == {"accepted": 5, "invalid": 0, "refused": 1}


def test_a_full_disk_and_a_broken_one_are_refusals_that_pass(tmp_path: Path) -> None:
    root = tmp_path / "log"

    async def test(writer: LabelWriter, disk: Disk) -> None:
        disk.free = 999
        with pytest.raises(LabelsUnavailable) as caught:
            await writer.offer(body("p0"))
        assert caught.value.retry_after_s == 5
        told = writer.losses.to_json()
        assert (told["lost"], "min_free_bytes" in told["trouble"]) == ({"disk_full": 1, "write_error": 0}, True)
        disk.free = PLENTY
        (root / "labels").write_text("a file where the folder should be")
        with pytest.raises(LabelsUnavailable):
            await writer.offer(body("p1"))
        (root / "labels").unlink()
        assert (await writer.offer(body("p2"))).accepted == 1
        assert kept(root) == ["p2"]
        assert writer.losses.to_json() == {"lost": {"disk_full": 1, "write_error": 1}, "trouble": ""}

    assert run(root, test) == {"accepted": 1, "invalid": 0, "refused": 2}


def test_what_is_queued_when_it_closes_is_written_and_answered_and_no_more_is_taken(tmp_path: Path) -> None:
    async def test(writer: LabelWriter, disk: Disk) -> None:
        disk.released.clear()
        futures = [writer.offer(body(f"p{index}")) for index in range(5)]
        closing = asyncio.create_task(asyncio.to_thread(writer.close, 10))
        disk.released.set()
        await closing
        assert [(await future).accepted for future in futures] == [1] * 5
        with pytest.raises(LabelsUnavailable):
            writer.offer(body("p9"))
        assert sorted(kept(tmp_path)) == [f"p{index}" for index in range(5)]

    run(tmp_path, test)
    assert not list(tmp_path.rglob("*.open"))
