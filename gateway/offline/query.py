"""SQL over the sample log: DuckDB in memory, with views of all samples, all labels and both together, and no more."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from gateway.offline.compactor import Compactor
from gateway.offline.parts import SUFFIX, Parts, parts_in
from gateway.samples.lock import reading
from gateway.samples.search import Selection, hours, segments_in
from gateway.samples.segments import Watermark

# The columns that the folders say. As text: version 2 is not a number.
_FOLDERS = "{'model': VARCHAR, 'version': VARCHAR, 'date': DATE, 'hour': INTEGER}"
_LABELS = {
    "prediction_id": "VARCHAR",
    "row": "BIGINT",
    "label": "JSON",
    "ts_ns": "BIGINT",
    "event_ts_ns": "BIGINT",
    "source": "VARCHAR",
    "weight": "DOUBLE",
}
# Each row of samples once, with the latest of its labels by the time that it is about (where the sender does not say
# that, by its arrival), or nulls. A label without a row is about the only one of a request, and of several about none.
_LABELLED = """
WITH told AS (
    SELECT prediction_id, coalesce("row", 0) AS place, "row" IS NOT NULL AS is_named, ts_ns AS arrived_ns,
        coalesce(event_ts_ns, ts_ns) AS at_ns,
        -- 1 and 1.0 are one label
        CASE WHEN json_type(label) IN ('UBIGINT', 'BIGINT', 'DOUBLE') THEN CAST(CAST(label AS DOUBLE) AS VARCHAR)
            ELSE CAST(label AS VARCHAR) END AS said,
        {'label': label, 'ts_ns': ts_ns, 'event_ts_ns': event_ts_ns, 'source': source, 'weight': weight} AS whole
    FROM labels WHERE prediction_id IS NOT NULL AND label IS NOT NULL
), summed AS (
    SELECT prediction_id, place,
        {'latest': first(whole ORDER BY at_ns DESC, arrived_ns DESC, said), 'labels': count(*),
            'said': count(DISTINCT said)} AS every,
        {'latest': first(whole ORDER BY at_ns DESC, arrived_ns DESC, said) FILTER (is_named),
            'labels': count(*) FILTER (is_named), 'said': count(DISTINCT said) FILTER (is_named)} AS named
    FROM told GROUP BY ALL
), joined AS (
    SELECT samples.*, CASE WHEN samples."rows" = 1 THEN every ELSE named END AS found
    FROM samples LEFT JOIN summed ON summed.prediction_id = samples.prediction_id AND place = samples."row"
)
SELECT joined.* EXCLUDE (found), found.latest.label AS label, found.latest.ts_ns AS label_ts_ns,
    (found.latest.ts_ns - ts_ns) / 1e9 AS label_delay_s, found.latest.event_ts_ns AS label_event_ts_ns,
    found.latest.source AS label_source, found.latest.weight AS label_weight, coalesce(found.labels, 0) AS labels,
    coalesce(found.said, 0) > 1 AS is_disputed
FROM joined
"""

# A segment may be closed, and get its other name, while it is looked at.
_ATTEMPTS = 3


class NotAQuery(ValueError):
    """What was asked is more than one statement, or one that does more than read."""


@contextmanager
def opened(root: Path) -> Iterator[Query]:
    """A desk for queries over the log *root*. Until the end of this nothing is compacted.

    Rows that are still JSON Lines are made Parquet in a temporary directory first. Raises OSError; ValueError if there
    is nothing in the log, or something that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="sluicegate-sql-") as scratch, reading(root):
        recent = Path(scratch) / "recent"
        files = [path for folders in hours(root, Selection()) for folder in folders for path in parts_in(folder)]
        files += _compacted(root, recent)
        labels = sorted(root.glob("labels/**/*.jsonl*"))
        if not files and not labels:
            raise ValueError(f"there are no samples in {root} yet")
        with duckdb.connect() as connection:
            yield Query(connection, files, labels, Path(scratch) / "spill")


def _compacted(root: Path, recent: Path) -> list[Path]:
    """Make Parquet, in the empty log *recent*, of all rows that are in segments only. Returns the files."""
    linked: set[Path] = set()
    left: list[Path] = []
    for _attempt in range(_ATTEMPTS):
        for segment in [path for folders in hours(root, Selection()) for path in _uncovered(folders)]:
            link = recent / segment.relative_to(root).with_name(segment.name.removesuffix(".open"))
            if link not in linked:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(segment.absolute())
                linked.add(link)
        # To the compactor, links are segments that somebody has read; it removes them when their rows are written.
        compactor = Compactor(recent, root, after_s=0.0, clock=lambda: math.inf)
        versions = (path.relative_to(recent).as_posix() for path in recent.glob("model=*/version=*"))
        every = Watermark(finished=dict.fromkeys(versions, "date=9999"))
        while compactor.step(every, lambda: True):
            pass
        compactor.close()
        left = list(recent.rglob("*.jsonl"))
        if not left:
            return sorted(recent.rglob(f"*{SUFFIX}"))
        linked -= set(left)  # closed, and so renamed, since they were listed
    raise ValueError(f"cannot read {left[0].relative_to(recent)}")


def _uncovered(folders: list[Path]) -> list[Path]:
    return [path for folder in folders for path in segments_in(folder, Parts())]


class Query:
    """Answers SELECTs. Used by one thread."""

    def __init__(self, connection: Any, files: list[Path], labels: list[Path], spill: Path) -> None:
        """spill: where DuckDB may put what does not fit into memory."""
        self._connection = connection
        if files:
            self._view(
                "samples",
                f"read_parquet({_list(files)}, union_by_name=true, hive_partitioning=true, hive_types={_FOLDERS})",
            )
        if labels:
            columns = ", ".join(f"{name}: '{kind}'" for name, kind in _LABELS.items())
            options = f"columns={{{columns}}}, format='newline_delimited', ignore_errors=true"
            self._view("labels", f"read_json({_list(labels)}, {options})")
        else:
            nothing = ", ".join(f'CAST(NULL AS {kind}) AS "{name}"' for name, kind in _LABELS.items())
            self._view("labels", f"(SELECT {nothing}) WHERE false")
        if files:
            self._view("labelled", f"({_LABELLED})")
        connection.execute(f"SET temp_directory = {_text(str(spill))}")
        connection.execute(f"SET allowed_paths = {_list([*files, *labels])}")
        connection.execute(f"SET allowed_directories = {_list([spill])}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")

    def _view(self, name: str, source: str) -> None:
        self._connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")  # noqa: S608 -- paths, quoted

    def rows(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """(names of the columns, rows) of one SELECT, DESCRIBE, SUMMARIZE or EXPLAIN.

        Raises NotAQuery; duckdb.Error where DuckDB does not understand it or cannot do it, also while rows are taken.
        """
        statements = self._connection.extract_statements(sql)
        reads = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
        if len(statements) != 1 or statements[0].type not in reads:
            raise NotAQuery("expected one SELECT; the log is only read")
        cursor = self._connection.execute(statements[0])
        names = [column[0] for column in cursor.description or ()]
        return names, iter(lambda: cursor.fetchone(), None)


def _list(paths: list[Path]) -> str:
    return f"[{', '.join(_text(str(path)) for path in paths)}]"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
