"""kill -9 of those who write, read and move the sample log, under a load whose every row, label and drift counts."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet

from faults import stage
from faults.load import CLIENTS, Ask, Load
from faults.trial import Fault, Trial
from gateway.offline.parts import Parts
from gateway.offline.report import DriftDocument, parse
from gateway.samples.labels import LabelReader, from_line
from gateway.samples.search import Selection, select
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

LINEARS = (classifier("iris"), classifier("lily"))
WINDOW_ROWS = 60
DURABLE = {"state": "ENABLED", "variants": {"all": {"rate": 1, "durable": True}}, "defaultVariant": "all"}
# Everything small and often: a kill then falls into each of the steps again and again.
SETTINGS: SettingsTable = {
    "sampling": {"segment_max_age_s": 0.3, "segment_max_bytes": 20_000},
    "monitor": {"poll_s": 0.1, "window_rows": WINDOW_ROWS, "min_window_rows": 40, "compact_after_s": 0.01},
    "labels": {"wait_s": 1.0},
}
_SETTLE_S = 60.0
# Control looks each second: what a drift document said for so long must have been seen.
SEEN_S = 3.0

Column = tuple[str, str, str]  # model, version, name


class Watched:
    """A running gateway whose log is watched: load, drift that goes on from feature to feature, and what was said."""

    def __init__(self, trial: Trial, live: LiveGateway, seen_s: float) -> None:
        self.live = live
        self._enough_s = seen_s
        self.hits = 0  # kills that fell into a compaction
        self._trial = trial
        self._shifts: dict[str, frozenset[str]] = {linear.model: frozenset() for linear in LINEARS}
        self._seen_s: dict[Column, list[float]] = {}  # alarmed in documents: first and last time
        self._drifted: Counter[Column] = Counter()  # in how many finished windows
        self._windows: set[tuple[str, int]] = set()
        self.load = Load(live.data_url, self._ask, seed=trial.seed, label_share=0.3)

    def _ask(self, draw: random.Random) -> Ask:
        linear = draw.choice(LINEARS)
        shifts = self._shifts[linear.model]
        return stage.ask_named(draw, linear, rows=draw.choice((1, 1, 1, 3)), shifts=shifts)

    def between(self, turn: int) -> None:
        """Between two rounds: let another feature drift when its time has come, and look at the documents."""
        steps = [(linear.model, linear.features) for linear in LINEARS]
        share = (turn + 1) / self._trial.rounds
        for model, features in steps:
            self._shifts[model] = frozenset(features[: round(share * len(features))])
        self.look()

    def documents(self) -> list[DriftDocument]:
        """The drift documents as they are now."""
        found = sorted((self.live.state / "drift").glob("*.json"))
        return [parse(json.loads(path.read_bytes())) for path in found]

    def look(self) -> None:
        """Remember what the documents say now."""
        now_s = time.monotonic()
        for document in self.documents():
            for version in document.versions:
                for alarm in version.alarms:
                    key = (document.model, version.version, alarm.name)
                    self._seen_s.setdefault(key, [now_s, now_s])[1] = now_s
                for point in version.timeline:
                    if (document.model, point.to_ns) not in self._windows:
                        self._windows.add((document.model, point.to_ns))
                        self._drifted.update((document.model, version.version, name) for name in point.drifted)

    def trail(self) -> list[dict[str, Any]]:
        """The rows of the audit trail that tell of drift."""
        return [row for row in stage.trail(self.live) if row["verb"] == "alarm.drift"]

    # -- the end --------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait, under load, until each shifted feature is an alarm in documents and trail, then check the trail."""
        wanted = {(model, "1", name) for model, names in self._shifts.items() for name in names}

        def is_told() -> bool:
            self.look()
            return wanted <= self._seen_s.keys() and wanted <= opened(self.trail()).keys()

        eventually(is_told, "each feature that drifts is an alarm", timeout_s=_SETTLE_S)

    def check_alarms(self) -> None:
        """None lost, none told twice, none that no document stands behind."""
        said, twice = opened(self.trail()), repeated(self.trail())
        lost = {key for key, (first, last) in self._seen_s.items() if last - first > self._enough_s} - said.keys()
        invented = {key for key in said if self._drifted[key] < 2}
        self._trial.lost += len(lost) + len(twice)
        self._trial.must(not lost, f"alarms that are not in the audit trail: {sorted(lost)}")
        self._trial.must(not twice, f"alarms told twice: {sorted(twice)}")
        self._trial.must(not invented, f"alarms without drifted windows: {sorted(invented)}")

    def check_rows(self) -> None:
        """After the stop: each answered row and acknowledged label once; the monitor has counted each row once."""
        rows = rows_in(self.live.state / "samples")
        answered = {(identity, row) for identity, count in self.load.answered.items() for row in range(count)}
        lost, twice = answered - rows.keys(), [key for key, count in rows.items() if count > 1]
        labels = labels_in(self.live.state / "samples")
        lost_labels = self.load.labelled - labels.keys()
        twice_labels = [identity for identity, count in labels.items() if count > 1]
        self._trial.lost += len(lost) + len(twice) + len(lost_labels) + len(twice_labels)
        self._trial.must(not lost, f"{len(lost)} of {len(answered)} answered rows are not in the log")
        self._trial.must(not twice, f"{len(twice)} rows are in the log more than once")
        self._trial.must(not lost_labels, f"{len(lost_labels)} of {len(self.load.labelled)} labels are not in the log")
        self._trial.must(not twice_labels, f"{len(twice_labels)} labels are in the log more than once")
        in_parquet = parquet_rows_in(self.live.state / "samples")
        self._trial.must(max(in_parquet.values(), default=0) <= 1, "rows are in the Parquet files alone more than once")
        self._trial.must(bool(in_parquet), "nothing was made Parquet")
        counted = sum(version.rows_total for document in self.documents() for version in document.versions)
        self._trial.must(counted == len(rows), f"the monitor has counted {counted} rows of {len(rows)}")


def rows_in(log: Path) -> Counter[tuple[str, int]]:
    """(prediction id, row) of all that the log holds, by the rules of its readers."""
    return Counter((record["prediction_id"], record["row"]) for record, _line in select(log, Selection(), Parts()))


def parquet_rows_in(log: Path) -> Counter[tuple[str, int]]:
    """The same of those who look at Parquet files alone."""
    found: Counter[tuple[str, int]] = Counter()
    for path in log.rglob("*.parquet"):
        table = pyarrow.parquet.read_table(path, columns=["prediction_id", "row"], partitioning=None)
        found.update(zip(table["prediction_id"].to_pylist(), table["row"].to_pylist(), strict=True))
    return found


def labels_in(log: Path) -> Counter[str]:
    """The prediction ids that labels are there for."""
    blocks = LabelReader(log).read(10**9)
    return Counter(from_line(line).prediction_id for block in blocks for line in block.splitlines())


def opened(trail: list[dict[str, Any]]) -> Counter[Column]:
    """How often each column was told to have drifted."""
    return Counter(key for key, state in _told(trail) if state == "drifted")


def repeated(trail: list[dict[str, Any]]) -> set[Column]:
    """The columns that were told in the same state twice in a row."""
    found: set[Column] = set()
    last: dict[Column, str] = {}
    for key, state in _told(trail):
        if last.get(key) == state:
            found.add(key)
        last[key] = state
    return found


def _told(trail: list[dict[str, Any]]) -> Iterator[tuple[Column, str]]:
    for row in trail:
        after = row["after"]
        for column in after["columns"]:
            yield (after["model"], after["version"], column["name"]), after["state"]


# -- the faults ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched_log(trial: Trial, *, seen_s: float = SEEN_S) -> Iterator[Watched]:
    """A gateway under load until it is left; then all is checked.

    seen_s: control must have seen what a drift document said for so long; longer where control itself is killed.
    """

    def packages(models: Path) -> None:
        for linear in LINEARS:
            write_package(models, linear, reference_rows=500)

    with stage.gateway(trial, packages, SETTINGS) as live:
        make_durable(live, *(linear.model for linear in LINEARS))
        watched = Watched(trial, live, seen_s)
        with watched.load as load:
            load.wait_answered(20)
            yield watched
            watched.settle()
        stage.note(trial, load)
        with contextlib.suppress(AssertionError):  # what it has not counted by then is told below
            eventually(lambda: _has_counted(watched), "the monitor has read all", timeout_s=_SETTLE_S)
        time.sleep(SEEN_S)  # control looks at what was written last
        watched.look()
        watched.check_alarms()
    watched.check_rows()


def make_durable(live: LiveGateway, *models: str) -> None:
    """From now on no answer of these models goes out that is not in the log."""
    for model in models:
        headers = {"if-none-match": "*", "x-change-reason": "chaos"}
        reply = live.control.put(f"/admin/v1/flags/{model}.sampling", json=DURABLE, headers=headers)
        assert reply.status_code == 201, reply.text
    revision = int(reply.headers["etag"].strip('"'))
    eventually(lambda: _have_adopted(live, revision), "the workers know that the log is durable")


def _have_adopted(live: LiveGateway, revision: int) -> bool:
    workers = live.control.get("/admin/v1/status").json()["workers"]
    return len(workers) == 2 and all(worker["revision"] >= revision for worker in workers)


def _has_counted(watched: Watched) -> bool:
    counted = sum(version.rows_total for document in watched.documents() for version in document.versions)
    return counted >= sum(watched.load.answered.values())


def _worker(trial: Trial, watched: Watched) -> None:
    time.sleep(trial.draw.uniform(0.0, 0.6))  # the moment of the kill, drawn by the seed
    stage.killed(trial, watched.live, "worker", trial.draw.randrange(2))


def _monitor(trial: Trial, watched: Watched) -> None:
    time.sleep(trial.draw.uniform(0.0, 1.0))  # as above
    stage.killed(trial, watched.live, "monitor")


def _compactor(trial: Trial, watched: Watched) -> None:
    watched.hits += _until_compacting(watched.live.state / "samples")
    time.sleep(trial.draw.uniform(0.0, 0.02))  # as above
    stage.killed(trial, watched.live, "monitor")


def worker_killed(trial: Trial) -> None:
    """kill -9 of a worker at any moment: what it was asked just then is cut, nothing that it answered is lost."""
    _killed(trial, _worker)


def monitor_killed(trial: Trial) -> None:
    """kill -9 of the monitor at any moment of reading, reporting, saving."""
    _killed(trial, _monitor)


def compactor_killed(trial: Trial) -> None:
    """kill -9 of the monitor while it writes a Parquet file, swaps it in or removes segments."""
    watched = _killed(trial, _compactor)
    trial.must(2 * watched.hits >= trial.rounds, f"only {watched.hits} kills fell into a compaction")


def _killed(trial: Trial, *ways: Callable[[Trial, Watched], None]) -> Watched:
    with watched_log(trial) as watched:
        for turn in trial.turns():
            watched.between(turn)
            trial.draw.choice(ways)(trial, watched)
    harmless = ["cut"] if _worker in ways else []  # what the killed worker was just asked
    others = [failure for failure in watched.load.failures if failure.how not in harmless]
    trial.must(not others, f"requests failed: {watched.load.kinds()}")
    trial.must(len(watched.load.failures) <= trial.rounds * CLIENTS, "more was cut than a worker can have been asked")
    return watched


def _until_compacting(samples: Path) -> bool:
    """Wait until a Parquet file is being written; False if none comes."""
    until_s = time.monotonic() + 10.0
    while time.monotonic() < until_s:
        if next(samples.glob("model=*/version=*/date=*/hour=*/.*.tmp"), None) is not None:
            return True
        time.sleep(0.001)  # a file system tells nobody; the file is there for milliseconds
    return False


FAULTS = (
    Fault("kill -9 of a worker that logs", 70, worker_killed),
    Fault("kill -9 of the monitor", 65, monitor_killed),
    Fault("kill -9 of the monitor while it compacts", 65, compactor_killed),
)
