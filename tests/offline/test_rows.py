"""Lines, Parquet, portions: however a log is read, the monitor finds what a slow reader of dictionaries finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from scipy import stats

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.batches import batches
from gateway.offline.compactor import Compactor
from gateway.offline.drift import ks, ranks
from gateway.offline.monitor import Monitor
from gateway.offline.reference import load_reference
from gateway.samples.segments import SegmentReader
from gateway.settings import Settings
from gateway.tensors import Feature, Signature, TensorSpec
from tests.offline.logs import Log, document, monitor_settings, write_reference_package
from tests.offline.slow_reader import LIMIT, RULES, S, Slow
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS


def signature(version: str) -> Signature:
    """Both versions have other columns, too, and "level" is a category for one and a number for the other."""
    level = Feature("level", "level", 0, "categorical" if version == "1" else "numeric")
    own = Feature("amount", "amount", 0) if version == "1" else Feature("is_new", "is_new", 0, "categorical")
    specs = (
        TensorSpec("dose", "FP32", (-1, 1)),
        TensorSpec("colour", "BYTES", (-1, 1)),
        TensorSpec("level", "INT64", (-1, 1)),
        TensorSpec(own.name, "FP64" if version == "1" else "BOOL", (-1, 1)),
    )
    features = (Feature("dose", "dose", 0), Feature("colour", "colour", 0, "categorical"), level, own)
    outputs = (TensorSpec("label", "INT64", (-1,), "label"), TensorSpec("score", "FP32", (-1,)))
    return Signature(specs, outputs, features, classes=(0, 1))


def write_packages(models: Path) -> None:
    for version in ("1", "2"):
        dice = np.random.default_rng(int(version))
        reference = {
            "dose": dice.choice([0.0, 0.1, 1 / 3, 0.5], 60).tolist(),
            "colour": dice.choice(["red", "blue"], 60).tolist(),
            "level": dice.integers(0, 3, 60).tolist(),
            "amount": [None, *dice.normal(size=59).tolist()],
            "is_new": dice.choice([True, False], 60).tolist(),
            "label": dice.integers(0, 2, 60).tolist(),
            "score": dice.random(60).tolist(),
        }
        spec = signature(version)
        wanted = [*(feature.name for feature in spec.features), "label", "score"]
        write_reference_package(models, "m", version, spec, {name: reference[name] for name in wanted})


USUAL: dict[str, Callable[[random.Random], Any]] = {
    "dose": lambda dice: dice.choice([0.0, 0.1, 0.33333334, 7.0]),
    "colour": lambda dice: dice.choice(["red", "blue", "green"]),
    "level": lambda dice: dice.randrange(4),
    "amount": lambda dice: dice.gauss(0, 2),
    "is_new": lambda dice: dice.random() < 0.5,
    "label": lambda dice: dice.randrange(2),
    "score": lambda dice: float(np.float32(dice.random())),
}
ODD = [
    *(None, "", "red", "1.5", "NaN", "Infinity", "-Infinity", True, 2, 2.0, -0.0, 2**53 + 1, 2**63, 1e300, [2], ["x"]),
    {"datatype": "FP32", "shape": [1], "sha256": "0"},
]
ROUTES = [("stable", "SPLIT"), ("canary", "SPLIT"), ("stable", "STATIC"), ("canary", "TARGETING_MATCH")]
ODD_ROUTES = [("canary", "STATIC"), ("stable", "TARGETING_MATCH"), ("canary", "PINNED")]


def log_of(seed: int, *, is_odd: bool) -> list[list[bytes]]:
    """Portions of lines, in the order of time but for a few odd rows."""
    dice = random.Random(seed)
    portions: list[list[bytes]] = []
    ts_ns, digest = TEN_O_CLOCK_NS, "d1"
    numbers = dice.sample(range(10**6), 200)
    for _portion in range(dice.randint(1, 4)):
        lines = []
        for _row in range(dice.randint(1, 40)):
            ts_ns += dice.choice([0, 0, S, 5 * S])
            variant, reason = dice.choice([*ROUTES, *ODD_ROUTES] if is_odd else ROUTES)
            version = "1" if variant == "stable" else "2"
            if is_odd and dice.random() < 0.03:
                digest, version = dice.choice([("d1", version), ("d2", "1"), (digest, "1"), (digest, "2")])
            names = [*(feature.name for feature in signature(version).features), "label", "score"]
            values = {name: USUAL[name](dice) for name in names}
            if is_odd and dice.random() < 0.2:
                values[dice.choice(names)] = dice.choice(ODD)
            if is_odd and dice.random() < 0.1:
                del values[dice.choice(names)]
            late_ns = dice.choice([0] * 20 + [S, 200 * S]) if is_odd else 0
            record = {
                "schema": 1,
                "prediction_id": f"p{numbers.pop():06d}",
                "row": dice.randrange(3),
                "ts_ns": max(TEN_O_CLOCK_NS, ts_ns - late_ns),
                "model": "m",
                "version": version,
                "digest": digest if version == "1" else "d9",
                "variant": variant,
                "reason": reason,
                "sample_reason": "slow" if is_odd and dice.random() < 0.1 else "random",
                "inputs": {name: value for name, value in values.items() if name not in ("label", "score")},
                "outputs": {name: value for name, value in values.items() if name in ("label", "score")},
            }
            lines.append(json.dumps(record).encode())
            if is_odd and dice.random() < 0.03:
                lines.append(b'{"torn":')
        portions.append(lines)
    return portions


# A seed, not the values one by one: of those Hypothesis would draw only few.
LOGS = st.builds(log_of, st.integers(0, 2**32), is_odd=st.booleans())


def version_in(line: bytes) -> str:
    return "2" if b'"version": "2"' in line else "1"


def in_order_of_reading(lines: Sequence[bytes]) -> list[bytes]:
    """One file per version, one after the other."""
    return sorted(lines, key=version_in)


def write(log: Log, lines: Sequence[bytes]) -> None:
    for version in ("1", "2"):
        own = [line for line in lines if version_in(line) == version]
        if own:
            log.write_raw("m", version, TEN_O_CLOCK_NS, b"".join(line + b"\n" for line in own))


def start(settings: Settings) -> Monitor:
    return Monitor(settings, MonitorMetrics(process_registry()), clock=FakeClock(TEN_O_CLOCK_NS / 1e9 + 86_400))


def settings_in(root: Path, window_s: float) -> Settings:
    write_packages(root / "models")
    return monitor_settings(
        root / "models", root / "state", window_rows=LIMIT, min_window_rows=RULES.min_rows, window_s=window_s
    )


def slow_for(settings: Settings) -> Slow:
    references = {version: load_reference(settings.paths.models / "m" / version) for version in ("1", "2")}
    return Slow(references, int(settings.monitor.window_s * 1e9))


@given(LOGS, st.sampled_from([0.0, 20.0]), st.lists(st.sampled_from(["", "report", "restart"]), min_size=4))
@settings_of_hypothesis(max_examples=50, deadline=None)
def test_lines_are_read_as_a_slow_reader_reads_them_in_whatever_portions(
    tmp_path_factory: pytest.TempPathFactory, portions: list[list[bytes]], window_s: float, between: list[str]
) -> None:
    settings = settings_in(tmp_path_factory.mktemp("lines"), window_s)
    log, monitor, slow = Log(settings), start(settings), slow_for(settings)
    for lines, then in zip(portions, between, strict=False):
        write(log, lines)
        assert not monitor.step()
        slow.portion(in_order_of_reading(lines))
        if then == "report":
            monitor.report()
        elif then == "restart":
            monitor.save()
            monitor = start(settings)
    log.close()
    monitor.report()
    if slow.versions:
        slow.check(document(settings, "m"))


@given(LOGS, st.sampled_from([0.0, 20.0]), st.booleans())
@settings_of_hypothesis(max_examples=30, deadline=None)
def test_parquet_is_read_as_a_slow_reader_reads_its_lines(
    tmp_path_factory: pytest.TempPathFactory, portions: list[list[bytes]], window_s: float, is_one_part: bool
) -> None:
    settings = settings_in(tmp_path_factory.mktemp("parquet"), window_s)
    root, slow = settings.sample_log_path, slow_for(settings)
    for number, lines in enumerate(portions):
        log = Log(settings, boot=f"b{number}")
        write(log, lines)
        log.close()
        if not is_one_part or lines is portions[-1]:
            compact(root, settings.paths.models)
    assert not list(root.rglob("*.jsonl"))
    monitor = start(settings)
    while monitor.step():
        pass
    monitor.report()
    slow.portion(in_order_of_reading([line for lines in portions for line in lines]))
    if slow.versions:
        slow.check(document(settings, "m"))


def compact(root: Path, models: Path) -> None:
    reader = SegmentReader(root)
    list(reader.read(1 << 30))
    compactor = Compactor(root, models, after_s=0.0)
    while compactor.step(reader.watermark, lambda: True):
        pass
    compactor.close()


def usual(count: int, *, start: int = 0) -> list[bytes]:
    """Rows of version 1, one each second."""
    dice = np.random.default_rng(start)
    records = [
        {
            "schema": 1, "prediction_id": f"p{number:06d}", "row": 0, "ts_ns": TEN_O_CLOCK_NS + number * S,
            "model": "m", "version": "1", "digest": "d1", "variant": "stable", "reason": "STATIC",
            "sample_reason": "random", "inputs": {"dose": 0.1, "colour": "red", "level": 1, "amount": dice.normal()},
            "outputs": {"label": 1, "score": 0.5},
        }
        for number in range(start, start + count)
    ]  # fmt: skip
    return [json.dumps(record).encode() for record in records]


def test_after_a_backlog_of_many_windows_the_newest_are_told_of(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, 0.0)
    log, monitor, slow = Log(settings), start(settings), slow_for(settings)
    for portion in range(3):  # more windows in one portion than are told of, then a few more
        lines = usual(34 * LIMIT if portion == 1 else 2 * LIMIT, start=1000 * portion)
        write(log, lines)
        monitor.step()
        slow.portion(lines)
        if portion == 0:
            monitor.report()
    log.close()
    monitor.report()
    assert len(document(settings, "m").versions[0].timeline) == 32
    slow.check(document(settings, "m"))


def test_a_part_can_be_read_on_from_any_row(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, 0.0)
    log = Log(settings)
    write(log, usual(100))
    log.close()
    compact(settings.sample_log_path, settings.paths.models)
    (part,) = settings.sample_log_path.rglob("*.parquet")
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(part, partitioning=None), part, row_group_size=30)
    for first_row in range(101):
        found = list(batches(part, first_row=first_row))
        ids = [name for batch in found for chunk in batch.taken.chunks for name in chunk.ids.tolist()]
        assert ids == [f"p{number:06d}" for number in range(first_row, 100)]
        assert sum(batch.rows for batch in found) == 100 - first_row
        assert [batch.is_last for batch in found] == [True] * len(found)


SOME = st.floats(allow_nan=False) | st.sampled_from([0.0, 1.0, 1.0, 2.0, float("inf"), float("-inf")])


@given(st.lists(SOME, min_size=2, max_size=60), st.lists(SOME, min_size=2, max_size=60))
@example([1.0] * 5, [1.0] * 5)
def test_the_distance_of_kolmogorov_and_smirnov_is_scipys_to_the_last_bit(then: list[float], now: list[float]) -> None:
    wanted = stats.ks_2samp(then, now, method="asymp")
    assert ks(np.array(then), np.array(now)) == (wanted.statistic, wanted.pvalue)


@given(st.lists(SOME, min_size=2, max_size=60), st.lists(SOME, min_size=2, max_size=60))
@example([1.0] * 5, [1.0] * 4 + [2.0])
def test_the_test_of_mann_and_whitney_is_scipys(then: list[float], now: list[float]) -> None:
    above, p = ranks(np.array(then), np.array(now))
    if len({*then, *now}) == 1:
        assert (above, p) == (0.5, 1.0)  # scipy divides by zero there
        return
    wanted = stats.mannwhitneyu(now, then, method="asymptotic")
    assert above == pytest.approx(wanted.statistic / (len(then) * len(now)), abs=1e-12)
    assert p == pytest.approx(wanted.pvalue, rel=1e-9, abs=1e-300)
