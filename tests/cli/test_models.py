"""``sluicegate models``: list, show and verify, on whole and on damaged packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from gateway.cli import main
from gateway.models.manifest import sha256_of
from tests import builders


@pytest.fixture
def stocked(models: Path) -> Path:
    """A models directory with two versions of one model, one bare model, and what a killed conversion left."""
    for version in ("2", "10"):
        builders.write_package(models, builders.classifier(version=version), reference_rows=20, golden=True)
    builders.write_bare(models, builders.regressor())
    (models / ".building-iris-3-x").mkdir()
    (models / ".building-iris-3-x" / "model.onnx").write_bytes(b"half")
    return models


def test_packages_are_listed_by_model_and_version(stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", str(stocked), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["version"]) for row in listed] == [("house", "1"), ("iris", "2"), ("iris", "10")]
    assert main(["models", "list", str(stocked)]) == 0
    assert "iris" in capsys.readouterr().out


def test_a_directory_whose_name_is_none_is_told_as_passed_over(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list", str(stocked)]) == 0
    assert capsys.readouterr().err == ""
    shutil.copytree(stocked / "iris", stocked / "my iris")
    assert main(["models", "list", str(stocked)]) == 0
    assert "my iris/10 is passed over" in capsys.readouterr().err


def test_a_manifest_that_cannot_be_read_hides_no_other_package(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stocked / "iris" / "2" / "manifest.json").write_text("{")
    assert main(["models", "list", str(stocked)]) == 1
    told = capsys.readouterr()
    assert "house" in told.out
    assert "iris 2: " in told.err
    assert "is not valid JSON" in told.err
    assert main(["models", "list", str(stocked), "--json"]) == 1
    problems = {(row["model"], row["version"]): row["problem"] for row in json.loads(capsys.readouterr().out)}
    assert "is not valid JSON" in problems["iris", "2"]
    assert problems["house", "1"] is None


def test_show_prints_the_signature_of_one_package(stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", str(stocked / "iris" / "2")]) == 0
    out = capsys.readouterr().out
    for words in ("iris 2", "probabilities", "petal_width", "classes: 0, 1, 2"):
        assert words in out
    assert "iris 10" not in out
    assert main(["models", "show", str(stocked / "iris" / "2"), "--json"]) == 0
    (manifest,) = json.loads(capsys.readouterr().out)
    assert manifest["signature"]["features"][0]["name"] == "sepal_length"
    assert main(["models", "show", str(stocked / "house")]) == 0
    assert "no manifest" in capsys.readouterr().out


def test_verify_replays_golden_predictions_and_names_what_it_checked(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "verify", str(stocked)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "house 1: ok: 1 files, 0 golden pairs",
        "iris 2: ok: 3 files, 1 golden pairs, 20 reference rows answered as when it was converted",
        "iris 10: ok: 3 files, 1 golden pairs, 20 reference rows answered as when it was converted",
    ]


def test_verify_finds_reference_rows_that_are_answered_otherwise(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stocked / "iris" / "2" / "reference.parquet"
    table = pd.read_parquet(path)
    table.loc[[3, 7], "probabilities.0"] += 1e-3
    table.to_parquet(path, index=False)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"][path.name] = sha256_of(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    assert main(["models", "verify", str(path.parent)]) == 1
    assert "2 of 20 reference rows are answered otherwise" in capsys.readouterr().out


def test_verify_finds_a_manifest_that_does_not_follow_its_schema(
    stocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stocked / "iris" / "2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metrics"] = {"rows": -3}
    path.write_text(json.dumps(manifest))
    assert main(["models", "verify", str(path.parent)]) == 1
    assert "manifest.json: metrics.rows: -3 is less than the minimum of 0" in capsys.readouterr().out


def test_verify_finds_a_file_that_has_no_checksum(stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stocked / "iris" / "2" / "extra.bin").write_bytes(b"x")
    assert main(["models", "verify", str(stocked / "iris" / "2")]) == 1
    assert "files that the manifest does not list: extra.bin" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.onnx", "golden.json", "reference.parquet"])
def test_a_file_that_was_changed_is_found(name: str, stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stocked / "iris" / "2" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["models", "verify", str(stocked), "--json"]) == 1
    rows = {(row["model"], row["version"]): row for row in json.loads(capsys.readouterr().out)}
    assert not rows["iris", "2"]["ok"]
    assert f"iris/2/{name}: sha256" in rows["iris", "2"]["problem"]
    assert rows["iris", "10"]["ok"]


def test_a_file_that_is_gone_is_found(stocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stocked / "iris" / "10" / "model.onnx").unlink()
    assert main(["models", "verify", str(stocked / "iris")]) == 1
    assert "iris 10: iris/10: model.onnx is missing" in capsys.readouterr().out


def test_golden_answers_that_this_machine_does_not_give_are_found(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = builders.write_package(models, builders.classifier(), golden=True)
    golden = json.loads((package / "golden.json").read_text())
    golden["pairs"][0]["response"]["outputs"][1]["data"][0] += 0.01
    (package / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"]["golden.json"] = sha256_of(package / "golden.json")
    (package / "manifest.json").write_text(json.dumps(manifest))
    assert main(["models", "verify", str(models)]) == 1
    assert "'probabilities': this machine answers otherwise" in capsys.readouterr().out


def test_a_directory_without_packages_says_how_to_get_one(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(models)
    for directory in (models, models.parent):
        assert main(["models", "list", str(directory)]) == 1
        assert "sluicegate convert" in capsys.readouterr().err


def test_a_verb_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 2
    assert "usage: sluicegate models" in capsys.readouterr().err
