"""A gateway over a directory of packages, as a user starts it, for a benchmark to ask."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_S = 60.0


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """A gateway over the packages in ``root/models``, its state and log beside them; gives its address.

    Raises SystemExit with its log if it does not become ready.
    """
    ready = root / "ready.json"
    places = ["--models", str(root / "models"), "--state", str(root / "state"), "--ready-file", str(ready)]
    ports = ["--host", "127.0.0.1", "--port", "0", "--control-port", "0", "--workers", "1"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "gateway", "serve", *places, *ports], stderr=log, cwd=root)
    try:
        end_s = time.monotonic() + _START_S
        while not ready.exists() and time.monotonic() < end_s and process.poll() is None:
            time.sleep(0.05)  # a ready file tells nobody that it is there
        if not ready.exists():
            raise SystemExit((root / "log").read_text())
        yield json.loads(ready.read_text())["data"]["url"]
    finally:
        process.terminate()
        process.wait()
