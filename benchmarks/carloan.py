"""NannyML's car-loan data through the monitor itself: what drifts is found and nothing else, by others' figures, too.

`python benchmarks/carloan.py` takes a minute and needs the data (`benchmarks/peers/setup nannyml`). A package whose
reference is drawn from the reference set, the analysis rows as a sample log of ten windows of 5,000 rows, their truth
as labels; from window 5 on four features and the score have drifted. Exit code 1: a claim does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from scipy import stats
from scipy.spatial import distance
from sklearn import metrics

sys.path.insert(0, str(Path(__file__).parents[1]))

import other_monitors

from converters.reference import rows_as_parquet
from converters.rows import bytes_array
from gateway.labelling import LabelSettings
from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, Manifest, sha256_of
from gateway.offline.monitor import Monitor
from gateway.samples.labels import Label, LabelLog
from gateway.samples.lines import LineBuilder
from gateway.samples.record import Sample
from gateway.samples.segments import SegmentWriter
from gateway.settings import MonitorSettings, PathSettings, SamplingSettings, Settings
from gateway.tensors import Feature, Signature, Tensors, TensorSpec

MODEL, VERSION = "carloan", "1"
CHUNK_ROWS = 5000
FIRST_DRIFTED = 5
DRIFTED = {
    *("car_value", "salary_range", "loan_length", "repaid_loan_on_prev_car"),
    *("probabilities.0", "probabilities.1"),  # the score, and what it leaves of 1
}
LABEL, SCORE, TRUTH = "label", "probabilities.1", "repaid"
MAX_DIFFERENCE = 1e-6
# Labelled rows of a window of accuracy, and how many windows are its reference: the first four chunks.
ACCURACY_ROWS, ACCURACY_WINDOWS = 2500, 8

# 2026-03-01 00:00:00 UTC; each chunk fills an hour of its own.
START_NS = 1_772_323_200 * 10**9
_HOUR_S, _WAIT_S = 3600, 600
_REQUEST_ROWS = 50
_SEGMENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What the drift document says after a chunk: of the window that is this chunk, of alarms, of labels.

    columns: as in the document, by name. alarms: column -> when the oldest window began that is needed for the alarm.
    scores: of the chunk's labelled rows. accuracy: the verdict on it by labels.
    """

    columns: Mapping[str, Mapping[str, Any]]
    alarms: Mapping[str, int]
    scores: Mapping[str, Any]
    accuracy: str

    @property
    def drifted(self) -> set[str]:
        return {name for name, column in self.columns.items() if column["verdict"] == "drifted"}


def as_logged(frame: Any) -> Any:
    """NannyML's rows by the names of a package's columns; what is true or false becomes a category."""
    features = frame.drop(columns=["id", "timestamp", "period", "y_pred", "y_pred_proba", TRUTH], errors="ignore")
    for name in features:
        if features[name].dtype == bool:
            features[name] = features[name].astype(str)
    scores = frame["y_pred_proba"].astype(np.float64)
    return features.assign(
        **{LABEL: frame["y_pred"].astype(np.int64), "probabilities.0": 1.0 - scores, SCORE: scores, TRUTH: frame[TRUTH]}
    )


def signature_of(rows: Any) -> Signature:
    """The signature of a model that takes the features among the columns of *rows*: numbers of 64 bits, and texts."""
    features = [name for name in rows if name not in (LABEL, "probabilities.0", SCORE, TRUTH)]
    numbers = [name for name in features if rows[name].dtype.kind in "iuf"]
    texts = [name for name in features if name not in numbers]
    return Signature(
        inputs=(TensorSpec("numbers", "FP64", (-1, len(numbers))), TensorSpec("texts", "BYTES", (-1, len(texts)))),
        outputs=(
            TensorSpec(LABEL, "INT64", (-1,), "label"),
            TensorSpec("probabilities", "FP64", (-1, 2), "probabilities"),
        ),
        features=(
            *(Feature(name, "numbers", column) for column, name in enumerate(numbers)),
            *(Feature(name, "texts", column, "categorical") for column, name in enumerate(texts)),
        ),
        classes=(0, 1),
    )


def tensors_of(rows: Any, signature: Signature) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of *rows*."""
    names = {spec.name: [f.name for f in signature.features if f.input == spec.name] for spec in signature.inputs}
    texts = rows[names["texts"]].to_numpy(dtype=object)
    inputs = {
        "numbers": rows[names["numbers"]].to_numpy(dtype=np.float64),
        "texts": bytes_array(texts.ravel()).reshape(texts.shape),
    }
    return inputs, {
        LABEL: rows[LABEL].to_numpy(dtype=np.int64),
        "probabilities": rows[["probabilities.0", SCORE]].to_numpy(dtype=np.float64),
    }


def write_package(models: Path, rows: Any) -> Any:
    """A package whose reference is drawn from *rows* as the converter draws it; returns what was drawn. Its model is
    none: the monitor reads only what was logged."""
    signature, folder = signature_of(rows), models / MODEL / VERSION
    folder.mkdir(parents=True)
    drawn = rows_as_parquet(signature, *tensors_of(rows, signature), np.random.default_rng(0))
    (folder / REFERENCE_FILE).write_bytes(drawn)
    (folder / MODEL_FILE).write_bytes(b"not read")
    files = {name: sha256_of(folder / name) for name in (MODEL_FILE, REFERENCE_FILE)}
    (folder / MANIFEST_FILE).write_bytes(Manifest(MODEL, VERSION, files, signature).to_json())
    return pd.read_parquet(folder / REFERENCE_FILE)


def follow(folder: Path, chunks: Sequence[Any], signature: Signature, **labels: Any) -> Iterator[Told]:
    """Log chunk after chunk, labels too, have the monitor of the package in FOLDER/models read it, and report.

    chunks: of equally many rows, as `as_logged` gives them. labels: settings that are not the product's.
    """
    clock_s = [0.0]
    settings = Settings(
        paths=PathSettings(folder / "models", folder / "state"),
        monitor=MonitorSettings(window_rows=len(chunks[0]), compact_after_s=0),
        sampling=SamplingSettings(keep_s=0, max_log_bytes=0),
        labels=LabelSettings(wait_s=_WAIT_S, recent_rows=len(chunks[0]), **labels),
    )
    monitor = Monitor(settings, MonitorMetrics(process_registry()), clock=lambda: clock_s[0])
    for number, rows in enumerate(chunks):
        _log(settings.sample_log_path, number, rows, signature)
        clock_s[0] = START_NS / 1e9 + (number + 1) * _HOUR_S
        while monitor.step():
            pass
        monitor.report()
        yield _told(orjson.loads((settings.drift_path / f"{MODEL}.json").read_bytes()))


def _log(root: Path, number: int, rows: Any, signature: Signature) -> None:
    """The segments that a worker would have written for a chunk, and those of its labels."""
    boot = f"carloan-{number}"
    writer = SegmentWriter(root, boot, max_bytes=_SEGMENT_BYTES, max_age_s=_HOUR_S)
    truths = LabelLog(root, boot=boot, max_bytes=_SEGMENT_BYTES, max_age_s=_HOUR_S)
    builder = LineBuilder(_REQUEST_ROWS)
    inputs, outputs = tensors_of(rows, signature)
    truth = rows[TRUTH].astype(int).tolist()
    for first in range(0, len(rows), _REQUEST_ROWS):
        part = slice(first, min(len(rows), first + _REQUEST_ROWS))
        identity = f"{number * len(rows) + first:032x}"
        ts_ns = START_NS + number * _HOUR_S * 10**9 + first * 10**8  # 5,000 rows in 500 s
        sample = Sample(
            *(identity, "", ts_ns, MODEL, VERSION, "0" * 64, "stable", 1, "STATIC", 1.0, "random"),
            inputs={name: values[part] for name, values in inputs.items()},
            outputs={name: values[part] for name, values in outputs.items()},
            signature=signature,
            rows=part.stop - part.start,
            queue_s=0.0,
            run_s=1e-5,
            batch_rows=part.stop - part.start,
            cache="miss",
            protocol="native",
        )
        writer.write(MODEL, VERSION, ts_ns, b"".join(builder.lines(sample)))
        arrived_ns = ts_ns + 60 * 10**9
        lines = [Label(identity, value, arrived_ns, row=row).to_line() for row, value in enumerate(truth[part])]
        truths.append(lines, arrived_ns)
    writer.close()
    truths.close()


def _told(document: Mapping[str, Any]) -> Told:
    (version,) = document["versions"]
    assert version["status"] != "no reference", version["reason"]
    (labelled,) = document["performance"]["versions"]
    verdicts = {metric["name"]: metric["verdict"] for metric in labelled["metrics"]}
    return Told(
        {column["name"]: column for column in version["columns"]},
        {alarm["name"]: alarm["since_ns"] for alarm in version["alarms"]},
        labelled["scores"],
        verdicts.get("accuracy", "insufficient"),
    )


# -- the oracles ---------------------------------------------------------------------------------------


def differences_to_scipy(told: Told, reference: Any, rows: Any) -> dict[str, float]:
    """Figure -> the largest difference to what scipy and scikit-learn say of the same rows."""
    found = dict.fromkeys(
        ("KS distance", "p of numbers", "chi2 statistic", "chi2 p", "Jensen-Shannon of categories"), 0.0
    )

    def note(name: str, ours: float, theirs: float) -> None:
        found[name] = max(found.get(name, 0.0), abs(ours - theirs))

    for name, column in told.columns.items():
        if column["kind"] == "numeric":
            distributions = stats.ks_2samp(reference[name], rows[name], method="asymp")
            ranked = stats.mannwhitneyu(rows[name], reference[name], method="asymptotic")
            note("KS distance", column["effect"], distributions.statistic)
            note("p of numbers", column["p"], min(1.0, 2 * min(distributions.pvalue, ranked.pvalue)))
            continue
        counts = counted(reference[name], rows[name])
        statistic, p, _freedom, _expected = stats.chi2_contingency(counts, correction=False)
        note("chi2 statistic", column["statistic"], statistic)
        note("chi2 p", column["p"], p)
        js = distance.jensenshannon(*counts, base=2)
        note("Jensen-Shannon of categories", column["measures"]["jensen_shannon"], js)
    note("accuracy", told.scores["accuracy"], metrics.accuracy_score(rows[TRUTH], rows[LABEL]))
    note("AUC", told.scores["auc"], metrics.roc_auc_score(rows[TRUTH], rows[SCORE]))
    return found


def differences_to_nannyml(told: Sequence[Told], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Figure -> the largest difference to what NannyML says of the same rows, over all chunks.

    Where the definitions agree: of two categories NannyML corrects chi2 for continuity, which we do not; and its
    Jensen-Shannon distance of numbers is over other bins than ours.
    """
    found: dict[str, float] = {}

    def note(name: str, ours: Sequence[float], other: Sequence[float]) -> None:
        largest = float(np.max(np.abs(np.array(ours) - np.array(other))))
        found[name] = max(found.get(name, 0.0), largest)

    for name, by_method in theirs["statistics"].items():
        columns = [one.columns[name] for one in told]
        if columns[0]["kind"] == "numeric":
            note("KS distance", [column["effect"] for column in columns], by_method["kolmogorov_smirnov"])
            continue
        if len(columns[0]["measures"]["histogram"]["categories"]) > 2:
            note("chi2 statistic", [column["statistic"] for column in columns], by_method["chi2"])
        js = [column["measures"]["jensen_shannon"] for column in columns]
        note("Jensen-Shannon of categories", js, by_method["jensen_shannon"])
    note("accuracy", [one.scores["accuracy"] for one in told], theirs["accuracy"])
    note("AUC", [one.scores["auc"] for one in told], theirs["auc"])
    return found


def counted(reference: Any, rows: Any) -> Any:
    """Counts per category, [2, k]."""
    names = sorted({*map(str, reference), *map(str, rows)})
    return np.array([[np.count_nonzero(side.astype(str) == name) for name in names] for side in (reference, rows)])


# -- claims and table ----------------------------------------------------------------------------------


def claims(told: Sequence[Told]) -> Iterator[tuple[str, bool]]:
    """What is claimed, and whether it holds."""
    before, after = told[:FIRST_DRIFTED], told[FIRST_DRIFTED:]
    begins_ns = START_NS + FIRST_DRIFTED * _HOUR_S * 10**9
    yield f"no column drifts in chunks 0 to {FIRST_DRIFTED - 1}", not any(one.drifted for one in before)
    yield (
        f"from chunk {FIRST_DRIFTED} on the four features and the score drift in every chunk, and no other column",
        all(one.drifted == DRIFTED for one in after),
    )
    alarmed = [set(one.alarms) for one in told]
    yield (
        f"these and no others alarm, from the second such chunk on ({FIRST_DRIFTED + 1})",
        not any(alarmed[: FIRST_DRIFTED + 1]) and all(names == DRIFTED for names in alarmed[FIRST_DRIFTED + 1 :]),
    )
    yield (
        f"the alarms say, when they rise, that all they are about began with chunk {FIRST_DRIFTED}",
        set(told[FIRST_DRIFTED + 1].alarms.values()) == {begins_ns},
    )
    yield (
        f"labels: the accuracy falls from chunk {FIRST_DRIFTED} on, and not before",
        all(one.accuracy != "drifted" for one in before) and all(one.accuracy == "drifted" for one in after),
    )


def _equal(name: str, found: Mapping[str, float]) -> Iterator[tuple[str, bool]]:
    for figure, difference in found.items():
        yield f"{figure} is that of {name} (largest difference {difference:.1e})", difference <= MAX_DIFFERENCE


def _table(told: Sequence[Told], theirs: Mapping[str, Any]) -> None:
    print("\n| chunk | drifted | alarms | accuracy | by labels | NannyML's defaults: alarms | of accuracy |")
    print("|---|---|---|---|---|---|---|")
    for number, one in enumerate(told):
        alerts = sum(alerts[number] for alerts in theirs["alerts"].values())
        others = [name for name, by_chunk in theirs["alerts"].items() if by_chunk[number] and name not in DRIFTED]
        also = f", also {', '.join(others)}" if others else ""
        fall = "alarm" if theirs["accuracy_alerts"][number] else "-"
        print(
            f"| {number} | {len(one.drifted)} | {len(one.alarms)} | {one.scores['accuracy']:.4f} | {one.accuracy} "
            f"| {alerts}{also} | {fall} |"
        )


def _judged(folder: Path, environments: Path) -> tuple[list[Told], Mapping[str, Any], dict[str, float]]:
    """What the monitor tells chunk by chunk, what NannyML says of the same rows, and the differences to scipy."""
    ask = partial(other_monitors.ask, "nannyml", "car_loan.py", folder, environments=environments)
    ask("write")
    reference, analysis = (as_logged(pd.read_parquet(folder / f"{name}.parquet")) for name in ("reference", "analysis"))
    drawn = write_package(folder / "models", reference)
    for name, rows in {"reference": reference, "drawn": drawn, "analysis": analysis}.items():
        rows.to_parquet(folder / f"{name}.parquet")
    theirs = ask("judge")
    chunks = [analysis.iloc[first : first + CHUNK_ROWS] for first in range(0, len(analysis), CHUNK_ROWS)]
    sizes = {"window_rows": ACCURACY_ROWS, "reference_windows": ACCURACY_WINDOWS}
    told, scipys = [], dict[str, float]()
    for one, rows in zip(follow(folder, chunks, signature_of(reference), **sizes), chunks, strict=True):
        told.append(one)
        for figure, difference in differences_to_scipy(one, drawn, rows).items():
            scipys[figure] = max(scipys.get(figure, 0.0), difference)
    return told, theirs, scipys


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=other_monitors.ENVIRONMENTS, help="where setup put them")
    options = parser.parse_args(arguments)
    if not other_monitors.is_set_up("nannyml", options.environments):
        print("the data come with NannyML: benchmarks/peers/setup nannyml", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sluicegate-benchmark-") as folder:
        told, theirs, scipys = _judged(Path(folder), options.environments)
    print(
        f"car-loan data of {other_monitors.versions('nannyml')}; {len(told)} chunks of {CHUNK_ROWS} rows against "
        f"{next(iter(told[0].columns.values()))['n_ref']}; {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
    _table(told, theirs)
    print()
    failed = 0
    every = [
        *claims(told),
        *_equal("scipy and scikit-learn", scipys),
        *_equal("NannyML", differences_to_nannyml(told, theirs)),
    ]
    for claim, holds in every:
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
        failed += not holds
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
