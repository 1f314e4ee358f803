"""Files that are not what they were: a corrupt package, a segment that was torn by a crash, a truncated database."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

from faults import sample_log, stage
from faults.edits import Editor
from faults.load import Load
from faults.processes import DOWN, scene
from faults.trial import Fault, Trial
from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE
from tests.builders import classifier, write_package
from tests.end_to_end.flags import wait_adopted, wait_warm, workers_status
from tests.live import LiveGateway, eventually


def _spoil(package: Path, draw: random.Random) -> str:
    """Do one of the things that copying, disks and people do to a package; returns which."""
    model, manifest = package / MODEL_FILE, package / MANIFEST_FILE
    whole = model.read_bytes()
    kind = draw.choice(("a flipped bit", "a short model", "no model", "a short manifest"))
    if kind == "a flipped bit":
        place = draw.randrange(len(whole))
        model.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
    elif kind == "a short model":
        model.write_bytes(whole[: draw.randrange(len(whole))])
    elif kind == "no model":
        model.unlink()
    else:
        text = manifest.read_bytes()
        manifest.write_bytes(text[: draw.randrange(len(text) - 2)])
    return kind


def _states(live: LiveGateway, version: str) -> set[str]:
    found = [status["models"]["iris"]["versions"].get(version, {}).get("state") for status in workers_status(live)]
    return set(found)


def _has_failed(live: LiveGateway, version: str) -> bool:
    """Whether no worker could load it."""
    return _states(live, version) == {"failed"}


def package_corrupt(trial: Trial) -> None:
    """A candidate whose package is broken: it fails with a reason, gets no traffic, and may be put right."""
    with scene(trial, {}) as on:
        for turn in trial.turns():
            version = str(turn + 3)
            place = on.live.models / "iris" / version
            broken = write_package(trial.root / "broken", classifier("iris", version))
            kind = _spoil(broken, trial.draw)
            broken.rename(place)
            stage.must_change(on.live, "iris.route", {"variants": {"next": version}})
            eventually(partial(_has_failed, on.live, version), f"{kind} is found")
            raised = stage.change(on.live, "iris.route", {"targeting": {"fractional": [["next", 1], ["stable", 9]]}})
            trial.must(raised.status_code == 409, f"traffic for {kind} was answered with {raised.status_code}")
            on.load.wait_answered(20)
            whole = write_package(trial.root / "whole", classifier("iris", version))
            shutil.rmtree(place)
            began_s = time.monotonic()
            whole.rename(place)
            wait_warm(on.live, "iris", version)
            trial.recovered_s.append(time.monotonic() - began_s)
            stage.must_change(on.live, "iris.route", {"variants": {"next": None}})


def segment_torn(trial: Trial) -> None:
    """All processes end at once, and half a row is left at the end of each open segment."""
    with sample_log.watched_log(trial, seen_s=sample_log.SEEN_S + 10.0) as watched:
        for turn in trial.turns():
            watched.between(turn)
            time.sleep(trial.draw.uniform(0.2, 1.2))  # the moment of the crash, drawn by the seed
            samples = watched.live.state / "samples"
            stage.crashed(trial, watched.live, watched.load, partial(_tear, samples, trial.draw))
            watched.load.wait_answered(20)
    others = [failure for failure in watched.load.failures if failure.how not in DOWN]
    trial.must(not others, f"requests failed: {watched.load.kinds()}")


def _tear(samples: Path, draw: random.Random) -> None:
    for path in sorted(samples.rglob("*.jsonl.open")):
        lines = path.read_bytes().splitlines(keepends=True)
        if lines:
            with path.open("ab") as file:
                file.write(lines[-1][: draw.randrange(1, len(lines[-1]))])


def database_truncated(trial: Trial) -> None:
    """The end of flags.sqlite is gone: what was acknowledged last is served, and restored from its copy."""
    with stage.gateway(trial, stage.iris, {}) as live, Load(live.data_url, stage.ask_iris, seed=trial.seed) as load:
        stage.must_change(live, "iris.route", {"variants": {"green": "2"}})
        wait_warm(live, "iris", "2")
        for turn in trial.turns():
            variant = ("green", "stable")[turn % 2]
            with Editor(live) as editor:
                editor.wait_acknowledged(3)
            wait_adopted(live, "iris", stage.must_change(live, "iris.route", {"defaultVariant": variant}))
            stage.crashed(trial, live, load, lambda: _truncate(live.state / "flags.sqlite", trial.draw))
            trial.recovered_s.pop()  # it runs, but its flags cannot be changed yet
            reply = live.data.post("/predict/iris", content=stage.ask_iris(trial.draw).body)
            trial.must(reply.headers.get("x-model-variant") == variant, f"{reply.text} instead of {variant}")
            refused = stage.change(live, "iris.route", {"metadata": {"edit": -1}}).status_code
            trial.must(refused == 503, f"a change without a store was answered with {refused}")
            load.wait_answered(20)
            began_s = time.monotonic()
            for ending in ("", "-wal", "-shm"):
                live.state.joinpath(f"flags.sqlite{ending}").unlink(missing_ok=True)
            flag = eventually(lambda: _restored(live), "control has restored the flags")
            trial.recovered_s.append(time.monotonic() - began_s)
            is_whole = (flag["defaultVariant"], flag["metadata"]["edit"]) == (variant, editor.acknowledged[-1])
            trial.lost += not is_whole
            trial.must(is_whole, f"restored: {flag}, acknowledged: {variant}, edit {editor.acknowledged[-1]}")
            stage.must_change(live, "iris.route", {"metadata": {"edit": None}})
        load.wait_answered(20)
    stage.none_failed(trial, load, but=DOWN)


def _truncate(database: Path, draw: random.Random) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.open("r+b") as file:
        file.truncate(draw.randrange(1, database.stat().st_size))


def _restored(live: LiveGateway) -> dict[str, Any] | None:
    """The route as the store has it; None while control only knows it from its copy."""
    reply = live.control.get("/admin/v1/flags/iris.route")
    found: dict[str, Any] | None = None
    if reply.status_code == 200 and "x-flags-stale" not in reply.headers:
        found = reply.json()
    return found


FAULTS = (
    Fault("a corrupt package", 12, package_corrupt),
    Fault("all processes killed, segments torn", 15, segment_torn),
    Fault("all processes killed, flags.sqlite truncated", 8, database_truncated),
)
