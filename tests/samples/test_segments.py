"""The log on disk: whole lines, torn tails, rotation, followers, and readers that know nothing of our code."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.json
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.samples.lines import to_lines
from gateway.samples.record import json_schema
from gateway.samples.segments import SegmentReader, SegmentWriter, Watermark, partition_of, recover
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

HOUR_NS = 3600 * 10**9
TEN_O_CLOCK = "model=iris/version=1/date=2026-03-01/hour=10"
DEAD_PID = 2**22 + 1  # above the largest process id that Linux gives


def _writer(root: Path, *, boot: str = "b1", clock: FakeClock | None = None, max_bytes: int = 10**6) -> SegmentWriter:
    return SegmentWriter(root, boot, max_bytes=max_bytes, max_age_s=60.0, clock=clock or FakeClock())


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*.jsonl*"))


def _paths(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jsonl"))


def _lines_of(reader: SegmentReader, max_bytes: int = 10**9) -> list[bytes]:
    return [line for _file, block in reader.read(max_bytes) for line in block.splitlines(keepends=True)]


# -- writing --------------------------------------------------------------------------------------


def test_rows_lie_in_the_folder_of_their_model_version_and_hour(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"a\n")
    writer.write("iris", "1", TEN_O_CLOCK_NS + HOUR_NS, b"b\n")
    writer.write("iris", "2", TEN_O_CLOCK_NS, b"c\n")
    writer.write("iris", "1", TEN_O_CLOCK_NS + 1, b"d\n")
    writer.close()
    found = {str(path.parent.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert found == {
        TEN_O_CLOCK: b"a\nd\n",
        "model=iris/version=1/date=2026-03-01/hour=11": b"b\n",
        "model=iris/version=2/date=2026-03-01/hour=10": b"c\n",
    }


def test_a_name_cannot_lead_out_of_the_log() -> None:
    assert partition_of("../../etc", "a/b", TEN_O_CLOCK_NS).count("/") == 3


def test_lines_may_come_in_many_pieces_and_all_of_them_count_for_the_size(tmp_path: Path) -> None:
    writer = _writer(tmp_path, max_bytes=20_000)
    pieces = [b"%d\n" % number for number in range(5000)]  # more than the system takes by one call
    writer.write("iris", "1", TEN_O_CLOCK_NS, pieces[:100])
    assert _names(tmp_path) == [f"b1-{os.getpid()}-000001.jsonl.open"]
    writer.write("iris", "1", TEN_O_CLOCK_NS, pieces[100:])
    (closed,) = _paths(tmp_path)
    assert closed.read_bytes() == b"".join(pieces)


def test_of_pieces_that_do_not_all_fit_on_the_disk_none_is_left(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):  # after a part of the second piece
            writer.write("iris", "1", TEN_O_CLOCK_NS, [b"a" * 5999 + b"\n", b"b" * 5999 + b"\n", b"c\n"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    writer.write("iris", "1", TEN_O_CLOCK_NS, [b"second\n", b"third\n"])
    writer.close()
    (closed,) = _paths(tmp_path)
    assert closed.read_bytes() == b"first\nsecond\nthird\n"


def test_a_segment_is_closed_when_it_is_large_or_old_enough(tmp_path: Path) -> None:
    clock = FakeClock()
    writer = _writer(tmp_path, clock=clock, max_bytes=10)
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"12345678\n")
    assert _names(tmp_path) == [f"b1-{os.getpid()}-000001.jsonl.open"]
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"x\n")
    assert _names(tmp_path) == [f"b1-{os.getpid()}-000001.jsonl"]
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"y\n")
    clock.advance(59)
    writer.close_old()
    assert _names(tmp_path)[1] == f"b1-{os.getpid()}-000002.jsonl.open"
    clock.advance(2)
    writer.close_old()
    assert _names(tmp_path)[1] == f"b1-{os.getpid()}-000002.jsonl"


def _write_until_full(writer: SegmentWriter, lines: bytes) -> int:
    """How many writes the disk took."""
    for written in range(100):
        try:
            writer.write("iris", "1", TEN_O_CLOCK_NS, lines)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return written
    raise AssertionError("the disk never got full")


def test_a_full_disk_leaves_no_torn_line_and_writing_goes_on_when_there_is_room(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        writer = _writer(small)
        line = b"x" * 999 + b"\n"
        written = _write_until_full(writer, line * 3) * 3
        assert 0 < written < 100
        path = next(small.rglob("*.open"))
        assert path.read_bytes() == line * written
        # Somebody makes room: nothing has to be started again.
        subprocess.run(["mount", "-o", "remount,size=256k", small], check=True)
        writer.write("iris", "1", TEN_O_CLOCK_NS, line)
        writer.close()
        assert next(small.rglob("*.jsonl")).read_bytes() == line * (written + 1)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


# -- recovery ---------------------------------------------------------------------------------------


def _leave(root: Path, name: str, content: bytes) -> Path:
    folder = root / TEN_O_CLOCK
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


@given(st.binary(max_size=300).map(lambda raw: raw.replace(b"x", b"\n")))
@settings(max_examples=40)
def test_recovery_keeps_every_whole_line_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    root = tmp_path_factory.mktemp("log")
    path = _leave(root, f"b1-{DEAD_PID}-000001.jsonl.open", raw)
    assert recover(root, boot="b1") == 1
    assert not path.exists()
    whole = raw[: raw.rfind(b"\n") + 1]
    closed = path.with_name(f"b1-{DEAD_PID}-000001.jsonl")
    assert (closed.read_bytes() if closed.exists() else b"") == whole


def test_recovery_finds_the_last_newline_of_a_tail_longer_than_one_step(tmp_path: Path) -> None:
    path = _leave(tmp_path, f"b1-{DEAD_PID}-000001.jsonl.open", b"a\n" + b"t" * 300_000)
    recover(tmp_path, boot="b1")
    assert path.with_name(f"b1-{DEAD_PID}-000001.jsonl").read_bytes() == b"a\n"


def test_recovery_closes_what_another_boot_has_left_even_if_its_process_id_lives_again(tmp_path: Path) -> None:
    _leave(tmp_path, f"b0-{os.getpid()}-000001.jsonl.open", b"a\nto")
    assert recover(tmp_path, boot="b1") == 1
    assert _names(tmp_path) == [f"b0-{os.getpid()}-000001.jsonl"]


def test_recovery_leaves_the_segments_of_living_writers_alone(tmp_path: Path) -> None:
    writer, stranger = _writer(tmp_path), _writer(tmp_path, boot="b0")
    for each in (writer, stranger):
        each.write("iris", "1", TEN_O_CLOCK_NS, b"a\n")
    assert recover(tmp_path, boot="b1") == 0  # the stranger holds its lock, from whatever boot it is
    for each in (writer, stranger):
        each.write("iris", "1", TEN_O_CLOCK_NS, b"b\n")
        each.close()
    assert {path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == {b"a\nb\n"}
    assert len(_names(tmp_path)) == 2


_ENDLESS_WRITER = """
import sys
from pathlib import Path
from gateway.samples.segments import SegmentWriter

root = Path(sys.argv[1])
writer = SegmentWriter(root, "b1", max_bytes=200_000, max_age_s=60.0)
number = 0
while True:
    lines = b"".join(b'{"n":%d,"pad":"%s"}\\n' % (n, b"p" * (n % 300)) for n in range(number, number + 50))
    writer.write("iris", "1", int(sys.argv[2]), lines)
    number += 50
    print(number, flush=True)  # from here on these lines must not be lost
"""


@pytest.mark.parametrize("kill_after", [3, 40])
def test_kill_9_of_a_writing_process_loses_nothing_before_the_torn_tail(tmp_path: Path, kill_after: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS_WRITER, str(tmp_path), str(TEN_O_CLOCK_NS)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = 0
    for _ in range(kill_after):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.strip())])
    process.wait()
    process.stdout.close()
    # A kill falls between two writes more often than into one: tear the tail ourselves as well.
    with next(tmp_path.rglob("*.open")).open("ab") as torn:
        torn.write(b'{"n":1')
    assert recover(tmp_path, boot="b1") == 1
    numbers = [json.loads(line)["n"] for path in _paths(tmp_path) for line in path.read_bytes().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acknowledged


# -- following --------------------------------------------------------------------------------------


def test_a_reader_sees_complete_lines_of_open_segments_and_goes_on_after_they_are_closed(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    reader = SegmentReader(tmp_path)
    assert _lines_of(reader) == []
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"a\nb\n")
    assert _lines_of(reader) == [b"a\n", b"b\n"]
    assert _lines_of(reader) == []
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"c\n")
    writer.close()
    assert _lines_of(reader) == [b"c\n"]
    assert _lines_of(reader) == []


def test_a_reader_waits_for_the_end_of_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = _leave(tmp_path, f"b1-{os.getpid()}-000001.jsonl.open", b"a\nhal")
    reader = SegmentReader(tmp_path)
    assert _lines_of(reader) == [b"a\n"]
    with path.open("ab") as file:
        file.write(b"f\n")
    assert _lines_of(reader) == [b"half\n"]


def test_a_reader_says_whether_it_stopped_before_the_end(tmp_path: Path) -> None:
    writer, lines = _writer(tmp_path), [f"line {index:03}\n".encode() for index in range(100)]
    for version in ("1", "2"):
        writer.write("iris", version, TEN_O_CLOCK_NS, b"".join(lines))
    reader = SegmentReader(tmp_path)
    got, reads = _lines_of(reader, 95), 1
    while reader.has_more:
        got += _lines_of(reader, 95)
        reads += 1
    assert sorted(got) == sorted(2 * lines)
    assert reads > 10
    assert _lines_of(reader, 95) == []
    assert not reader.has_more


def test_a_reader_gives_a_line_longer_than_its_budget_whole(tmp_path: Path) -> None:
    long = b"x" * 5000 + b"\n"
    _leave(tmp_path, "b1-1-000001.jsonl", b"a\n" + long + b"b\n")
    reader = SegmentReader(tmp_path)
    rounds = [_lines_of(reader, 100) for _ in range(3)]
    assert rounds == [[b"a\n"], [long, b"b\n"], []] or rounds == [[b"a\n"], [long], [b"b\n"]]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5)),
            st.tuples(st.just("close")),
            st.tuples(st.just("read"), st.integers(1, 200)),
            st.tuples(st.just("restart")),
            st.tuples(st.just("forget"), st.integers(0, 5)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_reader_gives_every_line_once_whatever_happens_in_between(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    root = tmp_path_factory.mktemp("log")
    now = FakeClock(TEN_O_CLOCK_NS / 1e9)
    writer = _writer(root, max_bytes=60)
    reader = SegmentReader(root, clock=now)
    written: list[bytes] = []
    got: list[bytes] = []
    for step in steps:
        match step:
            case ("write", int(model), int(hour_ahead), int(lines)):
                new = [b"line %d\n" % (len(written) + index) for index in range(lines)]
                # Never an hour that the clock has left behind for good.
                writer.write(f"m{model}", "1", int(now.now_s) * 10**9 + hour_ahead * HOUR_NS, b"".join(new))
                written += new
            case ("close",):
                writer.close()
            case ("read", int(max_bytes)):
                got += _lines_of(reader, max_bytes)
            case ("restart",):
                mark = json.loads(json.dumps([reader.watermark.offsets, reader.watermark.finished]))
                reader = SegmentReader(root, Watermark(*mark), clock=now)
            case ("forget", int(hours)):
                now.advance(hours * 3600)
                reader.forget_finished()
    while more := _lines_of(reader):
        got += more
    assert sorted(got) == sorted(written)


def test_the_watermark_does_not_grow_with_the_log(tmp_path: Path) -> None:
    now = FakeClock(TEN_O_CLOCK_NS / 1e9)
    writer = _writer(tmp_path, max_bytes=1)
    reader = SegmentReader(tmp_path, clock=now)
    for hour in range(10):
        writer.write("iris", "1", TEN_O_CLOCK_NS + hour * HOUR_NS, b"a\n")
        assert _lines_of(reader) == [b"a\n"]
        assert _lines_of(reader) == []
        now.advance(3600)
        reader.forget_finished()
    assert len(reader.watermark.offsets) <= 3
    assert reader.watermark.finished == {"model=iris/version=1": "date=2026-03-01/hour=18"}


def test_offsets_of_removed_segments_are_forgotten(tmp_path: Path) -> None:
    path = _leave(tmp_path, "b1-1-000001.jsonl", b"a\n")
    reader = SegmentReader(tmp_path)
    _lines_of(reader)
    path.unlink()
    reader.forget_finished()
    assert reader.watermark.offsets == {}


# -- strangers --------------------------------------------------------------------------------------


def test_duckdb_and_arrow_read_the_log_without_our_code(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.write_schema()
    rows = iris_rows(30)
    for version, start in (("1", 0), ("2", 20)):
        stop = 20 if version == "1" else 30
        for index in range(start, stop):
            sample = linear_sample(rows[index : index + 1], version=version, prediction_id=f"p{index}")
            writer.write("iris", version, sample.ts_ns, b"".join(to_lines(sample, 64)))
    writer.close()
    assert (tmp_path / "sample.schema.json").read_bytes() == json_schema()

    pattern = str(tmp_path / "model=*/version=*/date=*/hour=*/*.jsonl")
    found = duckdb.execute(
        "select version, count(*), count(distinct prediction_id), min(inputs.sepal_length), any_value(hour)"
        f" from read_json('{pattern}', hive_partitioning=true) group by version order by version"
    ).fetchall()
    assert [tuple(map(str, row[:3])) for row in found] == [("1", "20", "20"), ("2", "10", "10")]
    assert found[0][3] == pytest.approx(float(rows[:20, 0].min()), rel=1e-6)
    assert int(found[0][4]) == 10

    path = next((tmp_path / "model=iris/version=2").rglob("*.jsonl"))
    table = pyarrow.json.read_json(path)
    assert table.num_rows == 10
    assert table["inputs"].combine_chunks().field("petal_width").to_pylist() == pytest.approx(rows[20:, 3].tolist())


def test_a_second_process_leaves_a_right_schema_file_alone(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.write_schema()
    before = (tmp_path / "sample.schema.json").stat().st_ino
    _writer(tmp_path, boot="b2").write_schema()
    assert (tmp_path / "sample.schema.json").stat().st_ino == before
    (tmp_path / "sample.schema.json").write_bytes(b"old")
    writer.write_schema()
    assert json.loads((tmp_path / "sample.schema.json").read_bytes())["properties"]["schema"] == {"const": 1}


def test_a_line_is_visible_to_readers_the_moment_it_is_written(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    for number in range(100):
        writer.write("iris", "1", TEN_O_CLOCK_NS, b"%d\n" % number)
        assert next(tmp_path.rglob("*.open")).read_bytes().endswith(b"%d\n" % number)
