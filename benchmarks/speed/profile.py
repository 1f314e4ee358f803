"""Where a worker's time goes while it answers: a sampling profile by file, taken from outside by py-spy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from speed import servers
from speed.asks import one_row
from speed.rounds import Bench, load

CONNECTIONS = (1, 32)
_SECONDS = 5
_PER_S = 250
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]+):\d+\)")
LOOP = "event loop, sockets, kernel"


def measure(bench: Bench) -> dict[str, Any]:
    """Shares of the samples of a gateway's worker, by file, for each number of connections."""
    models = bench.models("iris")
    ask = one_row(servers.infer_path("iris"), models["iris"].rows[0])
    shares: dict[str, dict[str, float]] = {}
    with servers.gateway(bench.root, "profile", models, servers.CACHE_OFF) as gateway:
        for connections in CONNECTIONS:
            load(bench.root, gateway, ask, connections, 1)
            out = bench.root / "profile.txt"
            spy = subprocess.Popen(
                [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(gateway.worker), "--nonblocking",
                 "--format", "raw", "--rate", str(_PER_S), "--duration", str(_SECONDS - 1), "--output", str(out)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            load(bench.root, gateway, ask, connections, _SECONDS)
            _, told = spy.communicate(timeout=30)
            if spy.returncode != 0:
                raise RuntimeError(f"py-spy failed: {told.decode(errors='replace').strip()[-300:]}")
            shares[str(connections)] = by_file(out.read_text())
            bench.tell(f"profile: {connections} connections")
    return {"series": {}, "shares": shares}


def by_file(raw: str) -> dict[str, float]:
    """The share of the samples whose innermost Python frame is in each file; raw: py-spy's format of that name."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frame = _FRAME.fullmatch(stack.rpartition(";")[2].strip())
        if frame is not None and count.isdigit():
            counts[_place(frame["file"])] += int(count)
    total = counts.total()
    return {place: count / total for place, count in counts.most_common()}


def _place(path: str) -> str:
    """A file as the reader knows it. What runs below the event loop's own frame is C: sockets, and the kernel."""
    if path.endswith(("asyncio/runners.py", "uvloop/__init__.py")) or "uvloop" in path:
        return LOOP
    for package in ("gateway/", "site-packages/"):
        _, found, tail = path.rpartition(package)
        if found:
            return package + tail if package == "gateway/" else tail
    return Path(path).name
