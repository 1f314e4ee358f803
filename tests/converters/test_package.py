"""The package on disk: complete, checked, written whole or not at all; and what it says of its rows."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler

from converters.convert import convert
from gateway.errors import ConversionRefused, InvalidInput
from gateway.models.manifest import parse
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from tests.converters.bench import (
    Rows,
    cancer,
    converted,
    diabetes,
    flowers,
    matrix,
    mixed,
    mixed_pipeline,
    order,
    served,
)

# Converts, but lets no file grow beyond a limit once writing begins: the kernel kills the process in the middle of it.
KILLED_WHILE_WRITING = """
import resource, signal, sys
from pathlib import Path
from converters.convert import Order, convert
def stop_writes(step, done, steps):
    if step == "write the package":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
model, data, out = map(Path, sys.argv[1:])
convert(Order(model, "model", "1", data, out, target="truth", trust=True), progress=stop_writes)
"""


def scaled() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression())


def test_a_written_package_is_what_its_manifest_says_and_a_worker_takes_it(tmp_path: Path) -> None:
    package = converted(tmp_path, scaled(), flowers())
    assert package.path == tmp_path / "models" / "model" / "1"
    assert sorted(path.name for path in package.path.iterdir()) == [
        *("card.md", "golden.json", "manifest.json", "model.onnx", "reference.parquet"),
    ]
    manifest = parse((package.path / "manifest.json").read_bytes(), where="here")
    assert manifest.files == package.manifest.files
    assert manifest.signature == package.manifest.signature
    assert manifest.framework["estimator"] == "Pipeline(StandardScaler, LogisticRegression)"
    assert manifest.libraries["scikit-learn"]
    assert len(manifest.lineage["source_sha256"]) == len(manifest.lineage["data_sha256"]) == 64
    loaded = load(DirectorySource(tmp_path / "models"), "model", "1", intra_op_threads=1, on_runtime=lambda _: None)
    assert loaded.signature == manifest.signature
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("estimator", "rows", "pairs"),
    [(scaled(), flowers(), 7), (mixed_pipeline(), mixed(), 7), (LinearRegression(), diabetes(), 7)],
    ids=["texts as labels", "mixed columns", "values"],
)
def test_golden_pairs_are_the_served_models_own_answers(estimator: Any, rows: Rows, pairs: int, tmp_path: Path) -> None:
    package = converted(tmp_path, estimator, rows)
    golden = json.loads((package.path / "golden.json").read_bytes())
    assert golden["schema"] == 1
    assert golden["tolerance"]["absolute"] > 0
    assert len(golden["pairs"]) == pairs
    assert [pair["request"]["inputs"][0]["shape"][0] for pair in golden["pairs"]] == [1] * 6 + [4]
    source = DirectorySource(tmp_path / "models")
    load(source, "model", "1", intra_op_threads=1, on_runtime=lambda _: None)  # replays them


def test_the_reference_holds_rows_and_histograms_of_features_and_outputs(tmp_path: Path) -> None:
    rows = mixed()
    package = converted(tmp_path, mixed_pipeline(), rows)
    table = pyarrow.parquet.read_table(package.path / "reference.parquet").to_pandas()
    assert list(table.columns) == ["area", "smoothness", "size", "code", "label", "probabilities.0", "probabilities.1"]
    assert len(table) == len(rows.features)
    assert table["area"].dtype == np.float32
    assert table["label"].dtype == np.int64
    assert set(table["size"]) == {"small", "middle", "large"}
    reference = package.manifest.reference
    assert reference["rows"] == len(rows.features)
    for histogram in (*reference["features"].values(), *reference["outputs"].values()):
        assert histogram["missing_rate"] == 0
        counts = histogram["counts"]
        assert sum(counts.values() if isinstance(counts, dict) else counts) == len(rows.features)
    area = reference["features"]["area"]
    assert area["kind"] == "numeric"
    assert len(area["edges"]) == len(area["counts"]) + 1
    assert area["quantiles"]["0.5"] == pytest.approx(np.median(rows.features["area"].to_numpy(np.float32)))
    assert reference["features"]["size"]["kind"] == reference["outputs"]["label"]["kind"] == "categorical"
    assert reference["outputs"]["label"]["counts"].keys() == {"0", "1"}


def test_the_reference_counts_what_is_missing(tmp_path: Path) -> None:
    rows = mixed()
    holes = Rows(rows.features.assign(area=rows.features["area"].mask(rows.features.index % 4 == 0)), rows.truth)
    package = converted(tmp_path, mixed_pipeline(), holes)
    assert package.manifest.reference["features"]["area"]["missing_rate"] == pytest.approx(0.25, abs=0.01)
    assert package.manifest.signature.features[0].missing_allowed
    table = pyarrow.parquet.read_table(package.path / "reference.parquet")
    assert table["area"].null_count == sum(holes.features["area"].isna())


def test_the_reference_keeps_at_most_5000_rows(tmp_path: Path) -> None:
    rows = flowers()
    many = Rows(
        pd.concat([rows.features] * 40, ignore_index=True),
        pd.concat([rows.truth] * 40, ignore_index=True),
    )
    package = converted(tmp_path, scaled(), many)
    assert pyarrow.parquet.read_metadata(package.path / "reference.parquet").num_rows == 5000
    assert package.manifest.reference["rows"] == 6000


def test_few_different_numbers_get_a_bin_each(tmp_path: Path) -> None:
    rows = cancer()
    features = rows.features.assign(flag=rows.features.index % 2, still=3.0)
    package = converted(tmp_path, scaled(), Rows(features, rows.truth))
    reference = package.manifest.reference["features"]
    assert reference["flag"]["edges"] == [0.0, 0.5, 1.0]
    assert reference["flag"]["counts"] == [285, 284]
    assert reference["still"]["counts"] == [569]


def test_quality_says_whether_the_rows_are_known_to_be_held_out(tmp_path: Path) -> None:
    rows, pipeline = flowers(), scaled()
    metrics = converted(tmp_path, pipeline, rows).manifest.metrics
    assert metrics["known_held_out"] is False
    assert "may be rows that the model was trained on" in metrics["note"]
    assert metrics["served"]["accuracy"] == metrics["original"]["accuracy"] == pipeline.score(rows.features, rows.truth)
    assert converted(tmp_path, pipeline, rows, version="2", held_out=True).manifest.metrics["known_held_out"] is True
    only_features = Rows(rows.features, rows.truth)
    plain = order(tmp_path, pipeline, only_features, version="3", target=None)
    pd.read_parquet(plain.data).drop(columns="truth").to_parquet(plain.data)
    assert convert(plain).manifest.metrics == {}


def test_a_version_that_exists_is_never_changed(tmp_path: Path) -> None:
    package = converted(tmp_path, scaled(), flowers())
    before = {path.name: path.read_bytes() for path in package.path.iterdir()}
    with pytest.raises(ConversionRefused, match="choose another version"):
        converted(tmp_path, LogisticRegression(max_iter=1000), flowers())
    assert {path.name: path.read_bytes() for path in package.path.iterdir()} == before


@pytest.mark.parametrize("change", [{"name": "../x"}, {"name": ""}, {"version": ".1"}, {"version": "a/b"}])
def test_names_that_cannot_be_a_directory_and_a_label_are_refused(change: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        converted(tmp_path, scaled(), flowers(), **change)
    assert not (tmp_path / "models").exists()


def test_a_kill_in_the_middle_of_writing_leaves_no_half_package(tmp_path: Path) -> None:
    rows = cancer()
    ordered = order(tmp_path, scaled().fit(rows.features, rows.truth), rows)
    arguments = [str(path) for path in (ordered.model, ordered.data, ordered.out)]
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    left = list(ordered.out.iterdir())
    assert len(left) == 1, "the kill came before or after the writing"
    assert left[0].name.startswith(".building-")
    assert DirectorySource(ordered.out).versions() == {}
    package = convert(ordered)
    assert DirectorySource(ordered.out).versions() == {"model": ["1"]}
    assert served(package, matrix(rows.features))["label"].shape == (569,)


def test_a_file_is_not_loaded_without_trust(tmp_path: Path) -> None:
    ordered = order(tmp_path, scaled().fit(flowers().features, flowers().truth), flowers())
    joblib.dump(_Trap(tmp_path / "sprung"), ordered.model)
    with pytest.raises(ConversionRefused, match="--trust"):
        convert(dataclasses.replace(ordered, trust=False))
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(InvalidInput, match="scikit-learn"):
        convert(ordered)
    assert (tmp_path / "sprung").exists()


class _Trap:
    """Runs code when it is loaded, as any pickled thing may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (NearestNeighbors().fit(diabetes().features), "neither predicts nor transforms new rows"),
        (LocalOutlierFactor().fit(diabetes().features), "one with novelty=True"),
        (LabelEncoder().fit([1, 2]), "no labels, no dictionaries"),
        (StandardScaler().fit(diabetes().features), "no answer of a transformer is true or false"),
        (LinearRegression(), "one that was fitted"),
        ({"weights": [1, 2]}, "a scikit-learn estimator"),
        (LinearRegression().fit(diabetes().features, diabetes().features), "no truth for 10 values per row"),
    ],
    ids=["no answer", "its own rows", "labels", "a truth of none", "unfitted", "no estimator", "a truth of several"],
)
def test_what_is_no_fitted_model_is_refused_by_name(thing: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        convert(order(tmp_path, thing, diabetes()))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    ordered = order(tmp_path, scaled().fit(flowers().features, flowers().truth), flowers())
    with pytest.raises(InvalidInput, match="no file"):
        convert(dataclasses.replace(ordered, model=tmp_path / "none.joblib"))
    with pytest.raises(InvalidInput, match=r"none\.csv"):
        convert(dataclasses.replace(ordered, data=tmp_path / "none.csv"))
    with pytest.raises(InvalidInput, match=r"\.csv or \.parquet"):
        convert(dataclasses.replace(ordered, data=ordered.model))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InvalidInput, match=r"broken\.parquet"):
        convert(dataclasses.replace(ordered, data=tmp_path / "broken.parquet"))
    (tmp_path / "text.joblib").write_text("hello")
    with pytest.raises(InvalidInput, match=r"text\.joblib"):
        convert(dataclasses.replace(ordered, model=tmp_path / "text.joblib"))


def test_mistakes_in_the_order_are_told_by_what_was_meant(tmp_path: Path) -> None:
    rows = flowers()
    ordered = order(tmp_path, scaled().fit(rows.features, rows.truth), rows)
    with pytest.raises(InvalidInput, match="a feature of the model"):
        convert(dataclasses.replace(ordered, target=str(rows.features.columns[0])))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="expected a directory"):
        convert(dataclasses.replace(ordered, out=tmp_path / "file"))
    table = rows.features.astype(object)
    table.iloc[3, 0] = "n.a. here"
    table.assign(truth=rows.truth).to_csv(tmp_path / "typo.csv", index=False)
    with pytest.raises(ConversionRefused, match=r"original model fails.*n\.a\. here"):
        convert(dataclasses.replace(ordered, data=tmp_path / "typo.csv"))


def test_progress_is_told_step_by_step(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    ordered = order(tmp_path, scaled().fit(flowers().features, flowers().truth), flowers())
    convert(ordered, progress=lambda *step: told.append(step))
    assert [done for _, done, _ in told] == list(range(9))
    assert {steps for _, _, steps in told} == {8}
    assert told[-1][0] == "done"


def test_a_skops_file_needs_no_trust_unless_it_holds_types_of_its_own(tmp_path: Path) -> None:
    rows = flowers()
    skops.io.dump(scaled().fit(rows.features, rows.truth), tmp_path / "model.skops")
    ordered = order(tmp_path, None, rows, model=tmp_path / "model.skops", trust=False)
    assert convert(ordered).manifest.framework["name"] == "scikit-learn"
    forest = RandomForestClassifier(2).fit(rows.features, rows.truth)
    forest.own = _Own()
    skops.io.dump(forest, tmp_path / "own.skops")
    foreign = dataclasses.replace(ordered, model=tmp_path / "own.skops", version="2")
    with pytest.raises(ConversionRefused, match=r"test_package\._Own"):
        convert(foreign)
    convert(dataclasses.replace(foreign, trust=True))
    (tmp_path / "broken.skops").write_bytes(b"PK no")
    with pytest.raises(InvalidInput, match=r"broken\.skops"):
        convert(dataclasses.replace(ordered, model=tmp_path / "broken.skops", version="3"))


class _Own:
    """A type that skops does not know."""
