"""A uvicorn that the fast door was not tested with: predictions go through the ASGI app, and the log says so."""

from __future__ import annotations

import os
from pathlib import Path

from tests.builders import classifier, write_package
from tests.live import LiveGateway

ROW = {"rows": [dict.fromkeys(classifier().features, 1.0)]}


def test_predictions_are_answered_and_the_log_warns(models: Path, state: Path, tmp_path: Path) -> None:
    write_package(models, classifier())
    # Python reads this before anything else: uvicorn is the one that is installed, under the number of a later one.
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sitecustomize.py").write_text('import uvicorn\n\nuvicorn.__version__ = "0.99.0"\n')
    path = os.pathsep.join(filter(None, [str(tmp_path / "later"), os.environ.get("PYTHONPATH", "")]))
    with LiveGateway(models, state, environment={"PYTHONPATH": path}) as gateway:
        answer = gateway.data.post("/predict/iris", json=ROW)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"]) == 1
        assert "the fast door does not know this uvicorn" in gateway.log
        assert '"uvicorn": "0.99.0"' in gateway.log
