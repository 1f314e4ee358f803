"""Candidates that sleep, raise, answer nonsense, want terabytes or crash: clients get the default version's answers."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import orjson
from speed import machine

from faults import stage
from faults.load import Ask, Load
from faults.trial import Fault, Trial
from tests import faults as faulty
from tests.builders import Linear, classifier, write_package
from tests.crashing import DEADLY_SUM, write_crashing
from tests.end_to_end.flags import split, wait_adopted, wait_warm, workers_status
from tests.live import LiveGateway, SettingsTable, eventually

WORKERS = 2
SETTINGS: SettingsTable = {"cache": {"max_bytes": 0}}
_SLOW_TURNS = 250_000  # some 5 s
_DEADLINE_MS = "4000"

Write = Callable[[Path, Linear], Path]


def _ask(bad_first: float, model: Callable[[], str], draw: random.Random) -> Ask:
    """A row, every other one such as a candidate goes wrong on, for whatever model is asked now."""
    values = [bad_first if draw.random() < 0.5 else draw.gauss(0.0, 1.0), *(draw.gauss(0.0, 1.0) for _ in range(3))]
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": values}
    headers = {"x-targeting-key": f"user-{draw.randrange(10_000)}", "x-request-timeout-ms": _DEADLINE_MS}
    return Ask(f"/v2/models/{model()}/infer", orjson.dumps({"inputs": [tensor]}), headers=headers)


class _Releases:
    """A gateway on which one faulty candidate after another is released, each of a model of its own."""

    def __init__(self, trial: Trial, live: LiveGateway, load: Load, models: list[str]) -> None:
        self.live = live
        self.load = load
        self.model = models[0]  # that is asked now

    def release(self, version: str = "2") -> None:
        """Give half of the keys to the candidate, in all workers."""
        wait_warm(self.live, self.model, version)
        revision = stage.must_change(self.live, f"{self.model}.route", {"targeting": split(50)})
        wait_adopted(self.live, self.model, revision)


@contextlib.contextmanager
def _releases(trial: Trial, bad_first: float) -> Iterator[_Releases]:
    models = [f"m{turn}" for turn in range(trial.rounds)]

    def packages(root: Path) -> None:
        for model in models:
            write_package(root, classifier(model, "1"))

    found: list[_Releases] = []
    with (
        stage.gateway(trial, packages, SETTINGS, workers=WORKERS) as live,
        Load(
            live.data_url, partial(_ask, bad_first, lambda: found[0].model if found else models[0]), seed=trial.seed
        ) as load,
    ):
        found.append(_Releases(trial, live, load, models))
        load.wait_answered(20)
        yield found[0]
        load.wait_answered(20)


def _fails(trial: Trial, write: Write, bad_first: float = faulty.BAD_ABOVE + 1) -> None:
    """Release a candidate, ask it until the breakers of all workers are open; no client may get an error."""
    with _releases(trial, bad_first) as on:
        for turn in trial.turns():
            model = f"m{turn}"
            write(on.live.models, classifier(model, "2"))
            stage.must_change(on.live, f"{model}.route", {"variants": {"canary": "2"}})
            on.model = model
            on.release()
            began_s = time.monotonic()
            eventually(lambda: _all_shut(on.live, on.model), "the candidate is not asked any more")
            trial.recovered_s.append(time.monotonic() - began_s)
            on.load.wait_answered(20)
            stage.must_change(on.live, f"{model}.route", {"state": "DISABLED"})
    stage.none_failed(trial, on.load)
    trial.must(on.load.fallbacks > 0, "no answer said that it came from the default version instead")
    trial.must(" died: " not in on.live.log, "a worker died of a candidate")


def _all_shut(live: LiveGateway, model: str) -> bool:
    told = [each for status in workers_status(live) for each in status["breakers"] if each["model"] == model]
    return len(told) == WORKERS and all(breaker["opened"] for breaker in told)


def _write(fault: faulty.Fault) -> Write:
    return lambda root, linear: faulty.write_faulty(root, linear, fault)


def sleeps(trial: Trial) -> None:
    """Each run takes seconds, in a run thread: requests of the candidate are answered by the default in time."""
    _fails(trial, lambda root, linear: write_package(root, classifier(linear.model, "2", iterations=_SLOW_TURNS)))


def hangs(trial: Trial) -> None:
    """Some runs take a minute, on the event loop: they are called off."""
    _fails(trial, _write("hang"))


def raises(trial: Trial) -> None:
    """Every run raises."""
    _fails(trial, _write("raise"))


def gives_nan(trial: Trial) -> None:
    """Every other row gets NaN."""
    _fails(trial, _write("nan"))


def gives_wrong_shapes(trial: Trial) -> None:
    """Every run gives twice the rows."""
    _fails(trial, _write("rows"))


def wants_memory(trial: Trial) -> None:
    """Every other row wants a tensor of terabytes."""
    _fails(trial, _write("memory"))


def takes_memory(trial: Trial) -> None:
    """Every other row takes half a gigabyte for its run: the workers give it back."""
    with _releases(trial, faulty.BAD_ABOVE + 1) as on:
        for turn in trial.turns():
            model = f"m{turn}"
            faulty.write_faulty(on.live.models, classifier(model, "2"), "large")
            stage.must_change(on.live, f"{model}.route", {"variants": {"canary": "2"}})
            on.model = model
            before = _resident_bytes(on.live)
            on.release()
            on.load.wait_answered(200)
            began_s = time.monotonic()
            stage.must_change(on.live, f"{model}.route", {"state": "DISABLED"})
            most = before + faulty.LARGE_BYTES // 4
            eventually(partial(_has_given_back, on.live, most), "the memory is given back")
            trial.recovered_s.append(time.monotonic() - began_s)
    stage.none_failed(trial, on.load)


def _has_given_back(live: LiveGateway, most_bytes: int) -> bool:
    return _resident_bytes(live) < most_bytes


def _resident_bytes(live: LiveGateway) -> int:
    return machine.memory(live.child_pids("worker").values()).rss_bytes


def crashes(trial: Trial) -> None:
    """Every other row ends the process: after two deaths in a minute no worker has the version any more."""
    with _releases(trial, 10 * DEADLY_SUM) as on:
        for turn in trial.turns():
            model = f"m{turn}"
            write_crashing(on.live.models, classifier(model, "2"))
            stage.must_change(on.live, f"{model}.route", {"variants": {"canary": "2"}})
            on.model = model
            on.release()
            began_s = time.monotonic()
            eventually(lambda: _is_out(on.live, on.model), "the candidate is quarantined")
            trial.recovered_s.append(time.monotonic() - began_s)
            on.load.wait_answered(20)
    stage.none_failed(trial, on.load, but=frozenset({"cut"}))


def _is_out(live: LiveGateway, model: str) -> bool:
    """Whether it is quarantined, and all workers are back and know it."""
    listed = {entry["model"] for entry in live.control.get("/admin/v1/quarantine").json()["versions"]}
    states = [status["models"][model]["versions"].get("2", {}).get("state") for status in workers_status(live)]
    return model in listed and states == ["quarantined"] * WORKERS


FAULTS = (
    Fault("a candidate that sleeps", 5, sleeps),
    Fault("a candidate that hangs on the event loop", 5, hangs),
    Fault("a candidate that raises", 5, raises),
    Fault("a candidate that returns NaN", 5, gives_nan),
    Fault("a candidate that returns wrong shapes", 5, gives_wrong_shapes),
    Fault("a candidate that wants terabytes", 5, wants_memory),
    Fault("a candidate that takes half a gigabyte", 5, takes_memory),
    Fault("a candidate that crashes the process", 5, crashes),
)
