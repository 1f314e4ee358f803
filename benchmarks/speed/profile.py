"""Where a worker's time goes while it answers: a sampling profile by file, taken from outside by py-spy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from speed import rows, servers
from speed.asks import Ask, many_rows, one_row
from speed.rounds import Bench, load

FULL = 32  # connections
_SECONDS = 5
_PER_S = 250
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]+):\d+\)")
LOOP = "event loop, sockets, kernel"


def measure(bench: Bench) -> dict[str, Any]:
    """Shares of the samples of a gateway's worker, by file, for each kind of work that a bar is about."""
    models = bench.models("iris", "forest", "mlp")
    row = {name: one_row(servers.infer_path(name), model.rows[0]) for name, model in models.items()}
    forest = many_rows(servers.infer_path("forest"), models["forest"].rows, rows.PACK, binary=False)
    mlp = many_rows(servers.infer_path("mlp"), models["mlp"].rows, rows.PACK, binary=True)
    works = (
        ("iris, 1 connection", row["iris"], 1),
        ("iris", row["iris"], FULL),
        ("forest", row["forest"], FULL),
        (rows.FOREST_JSON, forest, FULL),
        (rows.MLP_ONE, row["mlp"], FULL),
        (rows.MLP_BINARY, mlp, FULL),
    )
    iris, shares = {"iris": models["iris"]}, {}
    with servers.gateway(bench.root, "profile", models, servers.CACHE_OFF) as gateway:
        for name, ask, connections in works:
            shares[name] = _shares(bench, gateway, name, ask, connections)
    with servers.gateway(bench.root, "profile-cache", iris, {}) as gateway:
        name = "iris, unique rows with the cache on"
        shares[name] = _shares(bench, gateway, name, row["iris"], FULL)
    with servers.gateway(bench.root, "profile-two", iris, servers.CACHE_OFF, workers=2) as gateway:
        name = "iris, one of two workers"
        shares[name] = _shares(bench, gateway, name, row["iris"], 2 * FULL)
    return {"series": {}, "shares": shares}


def _shares(bench: Bench, gateway: servers.Server, name: str, ask: Ask, connections: int) -> dict[str, float]:
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
    bench.tell(f"profile: {name}")
    return by_file(out.read_text())


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
