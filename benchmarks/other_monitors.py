"""Other drift monitors, each in an environment of its own (benchmarks/peers/setup NAME), asked about rows in files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".peers"
# What each script leaves in the folder that it was given.
ANSWER = "answer.json"
# They count their users over the network unless told not to.
_QUIET = {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def is_set_up(name: str, environments: Path = ENVIRONMENTS) -> bool:
    """Whether its environment is there with the versions that are wanted."""
    stamp = environments / name / "requirements.txt"
    return stamp.exists() and stamp.read_text() == (PEERS / name / "requirements.txt").read_text()


def versions(name: str) -> str:
    """The packages that it was chosen for, with their versions."""
    wanted, _, _ = (PEERS / name / "requirements.txt").read_text().partition("\n#")
    return ", ".join(line.replace("==", " ") for line in wanted.splitlines())


def ask(name: str, script: str, folder: Path, *arguments: str, environments: Path = ENVIRONMENTS) -> Any:
    """Run a script of a peer's folder on *folder*; its answer. Raises RuntimeError with its last words."""
    command = [str(environments / name / "bin" / "python"), str(PEERS / name / script), str(folder), *arguments]
    environment = {**_QUIET, "HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
    return json.loads((folder / ANSWER).read_bytes())
