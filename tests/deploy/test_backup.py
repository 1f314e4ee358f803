"""Backing up and restoring a state directory with the commands of docs/operate.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.end_to_end.flags import must_change
from tests.live import LiveGateway

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"


def run(name: str, state: Path, backup: Path) -> None:
    """Run a block of commands of the documentation."""
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    environment = {**os.environ, "STATE": str(state), "BACKUP": str(backup)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", found[1]], env=environment, check=True)


def verify(gateway: LiveGateway) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "audit", "verify", "--url", gateway.control_url]
    command += ["--token-file", str(gateway.state / "admin.token")]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_was_backed_up_while_it_ran_is_there_again_whole_and_with_its_tokens(
    models: Path, state: Path, tmp_path: Path
) -> None:
    require("sqlite3", "sqlite3")
    backup = tmp_path / "backup"
    write_package(models, classifier())
    gateway = LiveGateway(models, state, settings={"audit": {"checkpoint_rows": 1}})
    with gateway:
        must_change(gateway, "iris.route", {"metadata": {"note": "kept"}})
        run("backup", state, backup)
        must_change(gateway, "iris.route", {"metadata": {"note": "after the backup"}})
        token = gateway.admin_token
    assert (backup.stat().st_mode & 0o077, (backup / "tokens.sqlite").stat().st_mode & 0o077) == (0, 0)
    run("restore", state, backup)
    with gateway:
        assert gateway.admin_token == token
        flag = gateway.control.get("/admin/v1/flags/iris.route")
        assert flag.json()["metadata"]["note"] == "kept"
        done = verify(gateway)
        assert done.returncode == 0, done.stdout + done.stderr
        row = dict.fromkeys(classifier().features, 0.5)
        assert gateway.data.post("/predict/iris", json={"rows": [row]}).is_success
