"""``sluicegate convert``: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from onnx import TensorProto, helper
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.convert import Order
from gateway.cli import main
from gateway.models.source import DirectorySource
from tests.converters.bench import TARGET, Rows, cancer, mixed, mixed_pipeline, order, voting


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Order:
    """A fitted pipeline and its rows on disk."""
    rows = cancer()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows.features, rows.truth)
    return order(tmp_path_factory.mktemp("ordered"), pipeline, rows)


def arguments(ordered: Order, out: Path, *options: str) -> list[str]:
    """The command that converts what was ordered."""
    named = ("--name", "cancer", "--version", "1", "--data", str(ordered.data), "--out", str(out))
    return ["convert", str(ordered.model), *named, *options]


def as_process(ordered: Order, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "gateway", *arguments(ordered, out, *options))
    return subprocess.run(command, capture_output=True, text=True)


def test_a_package_is_written_and_the_report_tells_what_was_compared(ordered: Order, tmp_path: Path) -> None:
    done = as_process(ordered, tmp_path / "models", "--target", TARGET, "--trust")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar where nobody looks"
    for words in ("rows rounded to float32", "rows as they are", "569", "a row alone and in company", "accuracy"):
        assert words in done.stdout
    assert "not applicable: linear" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"wrote {tmp_path / 'models' / 'cancer' / '1'}; serve it with")
    assert DirectorySource(tmp_path / "models").versions() == {"cancer": ["1"]}


def test_without_trust_nothing_is_loaded_and_the_way_on_is_named(ordered: Order, tmp_path: Path) -> None:
    done = as_process(ordered, tmp_path / "models")
    assert done.returncode == 1
    assert "--trust" in done.stderr
    assert not (tmp_path / "models").exists()


class _Telltale:
    """Tells, when it is loaded, in which process that was and what it knows; then it ends that process, if it is to."""

    def __init__(self, path: Path, *, deadly: bool) -> None:
        self.path, self.deadly = path, deadly

    def __reduce__(self) -> tuple[object, ...]:
        told = "str(__import__('os').getpid()) + ' ' + ' '.join(__import__('os').environ)"
        end = "__import__('os').abort()" if self.deadly else "None"
        return eval, (f"[__import__('pathlib').Path({str(self.path)!r}).write_text({told}), {end}]",)


@pytest.mark.parametrize("deadly", [False, True], ids=["telling", "deadly"])
def test_code_in_a_models_file_runs_in_another_process_without_our_secrets(
    deadly: bool, ordered: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_TOKEN", "secret")
    model, told = tmp_path / "model.joblib", tmp_path / "told"
    joblib.dump(_Telltale(told, deadly=deadly), model)
    made = dataclasses.replace(ordered, model=model)
    assert main(arguments(made, tmp_path / "models", "--trust")) == 1
    where, *known = told.read_text().split()
    assert int(where) != os.getpid()
    assert not Path("/proc", where).exists()
    assert "PATH" in known
    assert "SLUICEGATE_TOKEN" not in known
    said = "the process that loaded model.joblib ended by SIGABRT" if deadly else "expected a scikit-learn estimator"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_ready_file_that_the_runtime_dies_of_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step of a Fourier transform that is an input, where 0 is drawn for it."""
    scalars = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("step", "length")]
    graph = helper.make_graph(
        [helper.make_node("STFT", ["signal", "step", "", "length"], ["y"])],
        "g",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, [1, 128, 1]), *scalars],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 15, 9, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "deadly.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "models"
    named = ("--name", "deadly", "--version", "1", "--out", str(out), "--json")
    assert main(["convert", str(tmp_path / "deadly.onnx"), *named]) == 1
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "deadly.onnx ended by SIGFPE at the step 'answer rows that were drawn at random'" in message
    assert not out.exists()


def test_a_refusal_exits_with_1_and_prints_what_was_compared(tmp_path: Path) -> None:
    rows = cancer()
    made = order(tmp_path, voting(HistGradientBoostingClassifier(max_iter=10)).fit(rows.features, rows.truth), rows)
    done = as_process(made, tmp_path / "models", "--target", TARGET, "--trust")
    assert done.returncode == 1
    assert "does not answer as VotingClassifier does" in done.stderr
    assert "rows rounded to float32" in done.stdout
    assert not (tmp_path / "models").exists()


def test_a_refusal_as_json_holds_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = cancer()
    made = order(tmp_path, voting(HistGradientBoostingClassifier(max_iter=10)).fit(rows.features, rows.truth), rows)
    assert main(arguments(made, tmp_path / "models", "--target", TARGET, "--trust", "--json")) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["error"]["code"] == "conversion_refused"
    assert report["parity"]["float32_rows"]["over_tolerance"] > 0


def test_the_report_as_json_is_one_document(ordered: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--target", TARGET, "--held-out", "--trust", "--json")
    assert main(arguments(ordered, tmp_path / "models", *options)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["package"] == str(tmp_path / "models" / "cancer" / "1")
    assert report["parity"]["agrees"] is True
    assert report["parity"]["raw_rows"]["rows"] == 569
    assert report["quantization"]["chosen"] == "float32"
    assert report["metrics"]["known_held_out"] is True


def test_features_are_shown_as_they_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = mixed()
    renamed = rows.features.rename(columns={"smoothness": "[red]smoothness"})
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    numbers = renamed[["area", "[red]smoothness"]]
    made = order(tmp_path, pipeline.fit(numbers, rows.truth), Rows(renamed, rows.truth))
    assert main(arguments(made, tmp_path / "models", "--target", TARGET, "--trust")) == 0
    assert "columns that are no features were left out: size, code" in capsys.readouterr().out
    assert main(["models", "show", str(tmp_path / "models")]) == 0
    assert "[red]smoothness" in capsys.readouterr().out


def test_wrong_arguments_exit_with_2_and_wrong_rows_with_1(
    ordered: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(ordered, tmp_path, "--quantize", "always"))
    assert ended.value.code == 2
    assert main(arguments(ordered, tmp_path, "--target", "verdict", "--trust")) == 1
    assert "target: expected a column of the data" in capsys.readouterr().err


def test_what_git_dvc_and_trackers_wrote_beside_the_model_is_kept_and_shown(
    ordered: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    model = repository / "model.joblib"
    model.write_bytes(ordered.model.read_bytes())
    hashed = "d41d8cd98f00b204e9800998ecf8427e"
    (repository / "model.joblib.dvc").write_text(f"outs:\n- md5: {hashed}\n  size: 9\n  path: model.joblib\n")
    (repository / "MLmodel").write_text("artifact_path: model\nflavors: {}\nrun_id: 0a1b2c\n")
    monkeypatch.setenv("WANDB_RUN_ID", "3xyz")
    git = ("git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "model")):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    (repository / "MLmodel").write_text("run_id: 4d5e6f\n")
    made = dataclasses.replace(ordered, model=model)
    assert main(arguments(made, tmp_path / "models", "--target", TARGET, "--trust", "--json")) == 0
    lineage = json.loads(capsys.readouterr().out)["lineage"]
    assert (lineage["git_commit"], lineage["git_dirty"]) == (commit, True)
    assert (lineage["model_dvc"], lineage["mlflow_run_id"], lineage["wandb_run_id"]) == (hashed, "4d5e6f", "3xyz")
    assert "data_dvc" not in lineage
    assert main(["models", "show", str(tmp_path / "models")]) == 0
    assert hashed in capsys.readouterr().out


def test_a_mixed_pipeline_is_converted_from_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = mixed()
    made = order(tmp_path, mixed_pipeline().fit(rows.features, rows.truth), rows, file="rows.csv")
    assert main(arguments(made, tmp_path / "models", "--target", TARGET, "--trust")) == 0
    assert "texts never seen: allowed for 2 of 2 features" in capsys.readouterr().out


def test_the_card_gets_into_the_package_and_is_shown(
    ordered: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, out = tmp_path / "card.toml", tmp_path / "models"
    card.write_text('stakes = "high"\nowner = "risk-ml"\nlimitations = ["no minors"]\n')
    assert main(arguments(ordered, out, "--trust", "--card", str(card))) == 0
    manifest = json.loads((out / "cancer" / "1" / "manifest.json").read_text())
    assert manifest["card"] == {"stakes": "high", "owner": "risk-ml", "limitations": ["no minors"]}
    capsys.readouterr()
    assert main(["models", "show", str(out / "cancer" / "1")]) == 0
    shown = capsys.readouterr().out
    for word in ("stakes", "high", "risk-ml", "no minors"):
        assert word in shown
    card.write_text('owner = "risk-ml"\n')
    assert main(arguments(ordered, tmp_path / "other", "--trust", "--card", str(card))) == 1
    assert "card.stakes" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
