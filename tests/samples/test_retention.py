"""Retention: the oldest goes first, what is in use never, what is unread only for its bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.samples.retention import Retention
from gateway.samples.segments import LATE_ROWS_S, SegmentReader, partition_of

HOUR_S = 3600
TEN_S = 1_772_359_200  # 2026-03-01 10:00:00 UTC


def put(root: Path, hour: int, name: str, size_bytes: int = 100) -> Path:
    """A file of so many bytes in the folder of the hour 10:00 + *hour*."""
    folder = root / partition_of("iris", "1", (TEN_S + hour * HOUR_S) * 10**9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"x" * (size_bytes - 1) + b"\n")
    return path


def clock(hours: float) -> float:
    return TEN_S + hours * HOUR_S + LATE_ROWS_S


def test_what_is_older_than_it_may_be_goes_with_its_folders_and_the_rest_stays(tmp_path: Path) -> None:
    old = [put(tmp_path, 0, "b-1-000001.jsonl"), put(tmp_path, 0, "b-1-000002.parquet")]
    young = put(tmp_path, 1, "b-1-000003.jsonl")
    being_written = put(tmp_path, -30, "b-1-000004.jsonl.open")
    labels = tmp_path / "labels" / "date=2026-02-27" / "b-1-1.jsonl"
    labels.parent.mkdir(parents=True)
    labels.write_text("{}\n")
    stranger = tmp_path / "model=iris" / "version=1" / "date=never" / "hour=1" / "notes.jsonl"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine\n")
    retention = Retention(tmp_path, keep_s=5 * HOUR_S, max_bytes=0, clock=lambda: clock(6.0))
    removed = retention.apply(lambda _relative: True)
    assert removed.files == {"age": 3, "bytes": 0, "unread": 0}
    assert removed.log_bytes == 200
    assert not any(path.exists() for path in (*old, labels))
    assert not old[0].parent.exists()
    assert not labels.parent.exists()
    assert young.exists()
    assert being_written.exists()
    assert stranger.exists()


def test_a_segment_that_was_not_read_to_its_end_outlives_its_age(tmp_path: Path) -> None:
    read, unread = put(tmp_path, 0, "a-1-000001.jsonl"), put(tmp_path, 0, "b-1-000001.jsonl")
    reader = SegmentReader(tmp_path)
    next(reader.read(10))
    assert [reader.has_read(path.relative_to(tmp_path).as_posix()) for path in (read, unread)] == [True, False]
    retention = Retention(tmp_path, keep_s=1.0, max_bytes=0, clock=lambda: clock(100))
    assert retention.apply(reader.has_read).files == {"age": 1, "bytes": 0, "unread": 0}
    assert (read.exists(), unread.exists()) == (False, True)
    list(reader.read(10**6))
    reader.forget_finished()  # it knows of finished hours without their names
    assert retention.apply(reader.has_read).files["age"] == 1


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=12),
    max_bytes=st.integers(1, 3000),
    unread_from=st.integers(0, 12),
    is_open=st.sets(st.integers(0, 11)),
)
def test_above_its_bytes_the_log_loses_its_oldest_closed_files_and_no_more_than_it_must(
    sizes: list[int], max_bytes: int, unread_from: int, is_open: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = [
            put(root, hour, f"b-1-{hour:06d}.jsonl" + (".open" if hour in is_open else ""), size)
            for hour, size in enumerate(sizes)
        ]
        unread = {path.relative_to(root).as_posix() for path in files[unread_from:]}
        removed = Retention(root, 0.0, max_bytes, clock=lambda: clock(99)).apply(lambda name: name not in unread)
        left = [path.exists() for path in files]
        closed = [place for place in range(len(files)) if place not in is_open]
        gone = [place for place in closed if not left[place]]
        assert all(left[place] for place in is_open if place < len(files))
        assert gone == closed[: len(gone)]  # the oldest
        size = sum(size for size, is_left in zip(sizes, left, strict=True) if is_left)
        assert removed.log_bytes == size
        assert size <= max_bytes or len(gone) == len(closed)
        assert not gone or size + sizes[gone[-1]] > max_bytes  # the last one had to go
        assert removed.files["unread"] == sum(place >= unread_from for place in gone)
        assert sum(removed.files.values()) == len(gone)


def test_the_folder_of_an_hour_that_is_not_over_is_left_to_its_writer(tmp_path: Path) -> None:
    path = put(tmp_path, 0, "b-1-000001.jsonl")
    Retention(tmp_path, 0.0, 1, clock=lambda: TEN_S + 60.0).apply(lambda _relative: True)
    assert not path.exists()
    assert os.path.isdir(path.parent)


def test_an_absent_log_has_nothing_to_remove(tmp_path: Path) -> None:
    assert Retention(tmp_path / "none", 1.0, 1).apply(lambda _relative: True).log_bytes == 0
