"""Compaction: each row once whatever happens, files that other tools read, and what is no row kept aside."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow.dataset
import pyarrow.parquet
import pytest

from gateway.errors import GatewayError
from gateway.offline.compactor import Compactor
from gateway.offline.parts import PartDamaged, Parts, part_path, read_part
from gateway.samples.lines import to_lines
from gateway.samples.lock import reading
from gateway.samples.search import Selection, newest, select
from gateway.samples.segments import Watermark
from tests.builders import classifier, write_package
from tests.offline.workshop import HOUR, SECOND_NS, Workshop, always
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / HOUR).iterdir())


def test_the_segments_of_an_hour_become_one_file_that_holds_every_row_as_it_was(shop: Workshop) -> None:
    shop.write(60)
    shop.writer.close()
    lines = [line for _record, line in select(shop.root, Selection())]
    assert len(_names(shop.root)) > 3
    done = shop.compact()
    assert [(found.rows, found.rejected_lines) for found in done] == [(60, 0)]
    assert _names(shop.root) == ["part-0001.parquet"]
    assert [line for _record, line in select(shop.root, Selection(), Parts())] == lines
    part = read_part(part_path(shop.root / HOUR, 1))
    assert sum(part.sources.values()) == part.rows == 60
    assert shop.compact() == []


def test_later_segments_join_the_file_of_their_hour(shop: Workshop) -> None:
    for _ in range(3):
        shop.write(20)
        shop.compact()
        assert _names(shop.root) == ["part-0001.parquet"]
        assert shop.ids() == shop.each_once()


def test_hours_and_versions_are_compacted_apart(shop: Workshop) -> None:
    shop.write(3)
    shop.write(3, version="2", linear=classifier(version="2"))
    shop.write(1, ts_ns=TEN_O_CLOCK_NS + 3600 * SECOND_NS)
    shop.compact()
    found = {
        path.parent.relative_to(shop.root).as_posix(): read_part(path).rows for path in shop.root.rglob("*.parquet")
    }
    assert found == {HOUR: 3, HOUR.replace("version=1", "version=2"): 3, HOUR.replace("hour=10", "hour=11"): 1}


def test_young_segments_wait_for_company_unless_they_are_large(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "samples", tmp_path)
    shop.write(10)
    shop.writer.close()
    now = max(path.stat().st_mtime for path in shop.root.rglob("*.jsonl"))
    clock = FakeClock(now + 50)
    shop.compactor = Compactor(shop.root, tmp_path, after_s=60.0, clock=clock)
    assert shop.compact() == []
    clock.advance(11)
    assert [done.rows for done in shop.compact()] == [10]


def test_segments_are_left_alone_until_they_were_read(shop: Workshop) -> None:
    shop.write(10)
    shop.writer.close()
    assert shop.compactor.step(Watermark(), always) is None
    watermark = shop.read()
    name, offset = max(watermark.offsets.items())
    watermark.offsets[name] = offset - 1
    assert shop.compactor.step(watermark, always) is not None
    assert [path.name for path in shop.root.rglob("*.jsonl")] == [Path(name).name]
    assert shop.compactor.step(watermark, always) is None
    assert (
        shop.compactor.step(Watermark(finished={"model=iris/version=1": "date=2026-03-01/hour=10"}), always) is not None
    )
    assert shop.ids() == shop.each_once()


def test_an_open_segment_is_left_alone(shop: Workshop) -> None:
    shop.write(5)
    shop.read()
    assert shop.compactor.step(shop.reader.watermark, always) is None
    assert shop.ids() == shop.each_once()


def test_while_somebody_reads_nothing_moves_and_it_is_tried_again_later(tmp_path: Path) -> None:
    clock = FakeClock(2e9)
    shop = Workshop(tmp_path / "samples", tmp_path)
    shop.compactor = Compactor(shop.root, tmp_path, after_s=1.0, clock=clock)
    shop.write(10)
    shop.writer.close()
    before = _names(shop.root)
    with reading(shop.root):
        assert shop.compact() == []
        assert _names(shop.root) == before
    clock.advance(60)
    assert [done.rows for done in shop.compact()] == [10]


def test_a_reader_that_began_before_a_compaction_sees_each_row_once(shop: Workshop) -> None:
    shop.write(40)
    shop.writer.close()
    rows = select(shop.root, Selection(), Parts())
    seen = [next(rows)]
    shop.compact()
    seen += rows
    assert Counter(record["prediction_id"] for record, _line in seen) == shop.each_once()


def test_of_two_compactors_one_works(shop: Workshop, tmp_path: Path) -> None:
    shop.write(10)
    shop.writer.close()
    watermark = shop.read()
    other = Compactor(shop.root, tmp_path, after_s=0.001, clock=lambda: 2e9)
    assert other.step(Watermark(), always) is None
    assert shop.compactor.step(watermark, always) is None
    other.close()
    assert shop.compactor.step(watermark, always) is not None


def test_it_stops_when_it_is_told_to_and_leaves_all_as_it_was(shop: Workshop) -> None:
    shop.write(10)
    shop.writer.close()
    watermark, before = shop.read(), _names(shop.root)
    assert shop.compactor.step(watermark, lambda: False) is None
    assert _names(shop.root) == before


def test_torn_and_wrong_lines_are_counted_and_kept_aside_and_block_nothing(shop: Workshop) -> None:
    shop.write(3)
    bad = [b"no json\n", b"\x00\x00\xff\n", b'{"schema":99}\n']
    shop.writer.write("iris", "1", TEN_O_CLOCK_NS, b"".join(bad))
    shop.write(3)
    shop.writer.close()
    torn = b'{"schema":1,"predic'
    with max(shop.root.rglob("*.jsonl")).open("ab") as last:
        last.write(torn)
    [done] = shop.compact()
    assert (done.rows, done.rejected_lines) == (6, 4)
    kept = [path.read_bytes() for path in sorted((shop.root / HOUR).glob("*.rejected"))]
    assert b"".join(kept) == b"".join(bad) + torn
    assert shop.ids() == shop.each_once()
    assert not list(shop.root.rglob("*.jsonl")) + list(shop.root.rglob("*.tmp"))


def test_a_segment_without_a_single_row_goes_too(shop: Workshop) -> None:
    shop.writer.write("iris", "1", TEN_O_CLOCK_NS, b"nothing\n")
    [done] = shop.compact()
    assert (done.rows, done.rejected_lines) == (0, 1)
    assert [name.rpartition(".")[2] for name in _names(shop.root)] == ["rejected"]
    assert shop.ids() == Counter()


def test_a_damaged_part_is_put_aside_and_does_not_stop_what_comes_after(shop: Workshop) -> None:
    shop.write(5)
    shop.compact()
    path = part_path(shop.root / HOUR, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PartDamaged):
        read_part(path)
    shop.write(5)
    assert [done.rows for done in shop.compact()] == [5]
    assert _names(shop.root) == ["part-0001.parquet", "part-0001.parquet.damaged"]


def test_a_part_of_a_gateway_to_come_is_not_touched(shop: Workshop) -> None:
    shop.write(5)
    shop.writer.close()
    strange = part_path(shop.root / HOUR, 1)
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), strange)
    before = strange.read_bytes()
    assert shop.compact() == []
    assert strange.read_bytes() == before
    assert len(list(shop.root.rglob("*.jsonl"))) > 0


def test_an_hour_that_makes_trouble_does_not_hold_up_the_others(shop: Workshop) -> None:
    shop.write(2)
    shop.write(1, ts_ns=TEN_O_CLOCK_NS + 3600 * SECOND_NS)
    (shop.root / HOUR / ".part-0001.parquet.tmp").mkdir()
    assert [done.rows for done in shop.compact()] == [1]


def test_new_columns_join_and_columns_of_another_type_begin_a_file_of_their_own(shop: Workshop) -> None:
    def write(row: int, inputs: dict[str, Any], **more: Any) -> None:
        plain = json.loads(to_lines(linear_sample(iris_rows(1), prediction_id=f"p{row:06d}"), 1)[0])
        line = json.dumps({**plain, "inputs": inputs, **more}).encode() + b"\n"
        shop.writer.write("iris", "1", TEN_O_CLOCK_NS, line)
        shop.written += 1

    write(0, {"x": 1.5})
    shop.compact()
    write(1, {"x": 2.5, "y": "red"}, weight=0.5)
    shop.compact()
    assert _names(shop.root) == ["part-0001.parquet"]
    write(2, {"x": "wide", "y": "red"})
    shop.compact()
    write(3, {"x": True})
    write(4, {"x": 7})
    shop.compact()
    assert _names(shop.root) == ["part-0001.parquet", "part-0002.parquet", "part-0003.parquet"]
    found = {
        record["prediction_id"]: record["inputs"]["x"] for record, _line in select(shop.root, Selection(), Parts())
    }
    assert found == {"p000000": 1.5, "p000001": 2.5, "p000002": "wide", "p000003": True, "p000004": 7}
    assert shop.ids() == shop.each_once()


def test_a_feature_without_any_value_has_the_type_of_the_manifest(shop: Workshop, tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier(), reference_rows=10)
    plain = json.loads(to_lines(linear_sample(iris_rows(1)), 1)[0])
    for name in plain["outputs"]:
        plain["outputs"][name] = None
    shop.writer.write("iris", "1", TEN_O_CLOCK_NS, json.dumps(plain).encode() + b"\n")
    shop.compact()
    schema = pyarrow.parquet.read_schema(part_path(shop.root / HOUR, 1))
    assert str(schema.field("outputs.label").type) == "int64"
    assert str(schema.field("outputs.probabilities.0").type) == "double"


def test_pandas_duckdb_and_pyarrow_read_it_without_our_code(shop: Workshop) -> None:
    shop.write(30)
    shop.write(30, version="2", linear=classifier(version="2"))
    shop.writer.close()
    wanted = sorted(record["inputs"]["sepal_width"] for record, _line in select(shop.root, Selection()))
    shop.compact()
    files = sorted(str(path) for path in shop.root.rglob("*.parquet"))
    frame = pandas.read_parquet(files)
    assert sorted(frame["inputs.sepal_width"]) == wanted
    assert frame["inputs.sepal_width"].dtype == np.float64
    assert frame["ts"].dtype.kind == "M"
    assert sorted(map(int, frame["version"].unique())) == [1, 2]
    assert pandas.read_parquet(files[0])["inputs.sepal_width"].size == 30
    query = f"select version, count(*), min(ts)::varchar from '{shop.root}/**/*.parquet' group by all order by all"
    first = ["2026-03-01 10:00:00", "2026-03-01 10:00:30"]
    assert duckdb.execute(query).fetchall() == [(1, 30, first[0]), (2, 30, first[1])]
    folder = pyarrow.dataset.dataset(shop.root, format="parquet", partitioning="hive", exclude_invalid_files=True)
    assert sorted(folder.to_table(columns=["inputs.sepal_width"])["inputs.sepal_width"].to_pylist()) == wanted


def test_the_newest_rows_and_those_of_a_span_are_found_in_both_forms(shop: Workshop) -> None:
    shop.write(50)
    shop.compact()
    shop.write(20)
    shop.writer.close()
    for rows in (1, 20, 21, 60, 200):
        found = [record["prediction_id"] for record, _line in newest(shop.root, rows, Selection(), Parts())]
        assert found == [f"p{index:06d}" for index in range(70)][-rows:]
    span = Selection(since_ns=TEN_O_CLOCK_NS + 10 * SECOND_NS, until_ns=TEN_O_CLOCK_NS + 60 * SECOND_NS)
    found = [record["prediction_id"] for record, _line in select(shop.root, span, Parts())]
    assert found == [f"p{index:06d}" for index in range(10, 60)]
    assert [record["prediction_id"] for record, _line in newest(shop.root, 2, span, Parts())] == ["p000058", "p000059"]


def test_without_pyarrow_one_is_told_what_to_install(shop: Workshop) -> None:
    shop.write(1)
    shop.compact()
    with pytest.raises(GatewayError, match=r"sluicegate\[monitor\]"):
        newest(shop.root, 1, Selection())
