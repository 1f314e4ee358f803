"""The commands of the README, run as they stand there, but for the ports and the state directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.end_to_end.flags import wait_warm
from tests.live import LiveGateway, eventually

README = (Path(__file__).parents[2] / "README.md").read_text()
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def commands(name: str) -> str:
    """The console block that the README marks with ``<!-- run: name -->``."""
    found = re.search(rf"<!-- run: {re.escape(name)} -->\n```console\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no block marked {name!r}"
    return found.group(1)


def shell(script: str, *, cwd: Path) -> str:
    """Run commands with this environment's sluicegate first on the path; fails the test if one of them fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with iris.joblib and iris.csv, as a data scientist has them."""
    directory = tmp_path_factory.mktemp("readme")
    data = load_iris(as_frame=True)
    frame = data.data.set_axis(FEATURES, axis=1)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, data.target)
    joblib.dump(model, directory / "iris.joblib")
    frame.assign(species=data.target).to_csv(directory / "iris.csv", index=False)
    return directory


def test_the_readme_goes_from_a_trained_model_to_a_pulled_kill_switch(trained: Path) -> None:
    convert = commands("convert")
    shell(convert, cwd=trained)
    shell(convert.replace("--version 1", "--version 2"), cwd=trained)
    (trained / "models/iris/2").rename(trained / "later")
    state = trained / "state"
    with LiveGateway(trained / "models", state) as gateway:
        ports = {"localhost:8080": gateway.data_url, "localhost:8081": gateway.control_url}

        def here(script: str) -> str:
            for written, real in ports.items():
                script = script.replace(written, real.removeprefix("http://"))
            return script

        answer = shell(here(commands("prediction")), cwd=trained)
        assert '"label":0' in answer
        assert '"variant":"stable"' in answer

        (trained / "later").rename(trained / "models/iris/2")
        login, *steps = commands("rollout").splitlines()
        login = f"export SLUICEGATE_URL={gateway.control_url}\n{login}\n"
        released = shell(login + "\n".join(steps), cwd=trained)
        assert "rollout iris-1: version 2 as canary" in released
        assert "aborted by hand: support calls" in released
        status = login + "sluicegate rollout status iris"
        eventually(lambda: "rolled back" in shell(status, cwd=trained).splitlines()[0], "the route before is back")

        declare, *others = commands("flags by command line").splitlines()
        assert "canary=2" in shell(login + declare, cwd=trained)
        wait_warm(gateway, "iris", "2")
        told = shell(login + "\n".join(others), cwd=trained)
        assert "looks good in the tests" in told

        printed = shell(here(commands("flags")), cwd=trained)
        assert "etag:" in printed.lower()
        assert '"fractional"' in printed
        assert '"DISABLED"' in printed
