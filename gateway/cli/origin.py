"""Where a model and its rows come from, as the tools beside them have written it down: git, DVC and trackers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_GIT_TIMEOUT_S = 5
_MAX_BYTES = 1_000_000
# Set by the trackers, or by who starts a run of theirs; ids, never keys.
_RUNS: Mapping[str, str] = {
    "MLFLOW_RUN_ID": "mlflow_run_id",
    "WANDB_RUN_ID": "wandb_run_id",
    "NEPTUNE_CUSTOM_RUN_ID": "neptune_run_id",
    "CLEARML_TASK_ID": "clearml_task_id",
}
# Of the YAML that DVC and MLflow write, the lines that hold what is kept here.
_DVC_HASH = re.compile(r"^\s*(?:- )?(?:md5|etag|checksum): ['\"]?([0-9a-fA-F]+(?:\.dir)?)['\"]?\s*$", re.MULTILINE)
_MLFLOW = re.compile(r"^(run_id|model_uuid|model_id): ['\"]?([\w.-]+)['\"]?\s*$", re.MULTILINE)


def origin_of(model: Path, data: Path | None) -> Mapping[str, Any]:
    """What is known: nothing stands here that is not. Keys as in the manifest's lineage.

    git_commit and git_dirty of the repository in which the model lies; model_dvc and data_dvc, the hashes in the .dvc
    file beside each; mlflow_run_id and mlflow_model_id of an MLmodel file beside the model; run ids that trackers have
    put into the environment.
    """
    found: dict[str, Any] = {"git_commit": None, **_git(model.absolute().parent)}
    for key, path in (("model_dvc", model), ("data_dvc", data)):
        if path is not None and (hashed := _DVC_HASH.search(_text(path.with_name(f"{path.name}.dvc")))):
            found[key] = hashed[1]
    found |= {name: os.environ[variable] for variable, name in _RUNS.items() if os.environ.get(variable)}
    for key, value in _MLFLOW.findall(_text(model.with_name("MLmodel"))):
        found["mlflow_run_id" if key == "run_id" else "mlflow_model_id"] = value
    return found


def _text(path: Path) -> str:
    """The text of a small file; nothing if there is none."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size < _MAX_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _git(directory: Path) -> Mapping[str, Any]:
    """The commit that is checked out where the model lies, if that is a git repository, and whether it has changes."""
    git = shutil.which("git")
    if git is None or not directory.is_dir():
        return {}
    answers = []
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            asked = subprocess.run(
                [git, "-C", str(directory), *words], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return {}
        if asked.returncode != 0:
            return {}
        answers.append(asked.stdout.strip())
    return {"git_commit": answers[0], "git_dirty": bool(answers[1])}
