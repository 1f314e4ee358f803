"""Simulated rollouts: keys, workers and failures by chance, documents as workers write them, the real controller.

What chance does: requests come from sticky keys of very different size and go to any worker; workers follow the route
late, are replaced and then count from nothing; the controller looks at uneven intervals, and is restarted itself. Slow
minutes and outages hit both arms alike.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from gateway.control.rollout import ENDED
from gateway.control.status import WorkerStatus
from gateway.flags.compile import compile_route
from gateway.tensors import Array
from tests.control.books import MODEL, ROUTE, Books, Worker

# The ramp of the figures: percent of the requests, seconds and requests of the candidate at least.
RAMP = ((1, 30, 100), (5, 60, 500), (20, 120, 1000), (50, 120, 2000))
_CLASSES = np.array([0.55, 0.3, 0.15])
_SCORES = np.exp(-0.5 * ((np.arange(24) - 11) / 5.0) ** 2)
_ROWS = 8  # of one run that is sampled


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes in. base: chance of an error. worse: times that, for the candidate. slower: times the run time.

    requests_s: per second. keys: how many there are, of log-normal size. keyless: share of the requests without a key.
    """

    base: float = 0.005
    worse: float = 1.0
    slower: float = 1.0
    requests_s: float = 500.0
    keys: int = 3000
    keyless: float = 0.3
    workers: int = 3
    restarts: float = 0.004  # chance per worker and look
    control_restarts: float = 0.01  # chance per look


@dataclass(frozen=True, slots=True)
class Outcome:
    """phase: how it ended. why: in words. requests: that the candidate's arm answered. pauses: reasons, in order."""

    phase: str
    why: str
    requests: int
    looks: int
    pauses: tuple[str, ...] = ()


@dataclass(slots=True)
class _Epoch:
    """What one worker remembers of one revision of the route."""

    keys: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)


class _Worker(Worker):
    """Its status document is read from a file: what was read does not change with what is counted later."""

    def status(self) -> WorkerStatus:
        told = super().status()
        return WorkerStatus(orjson.loads(orjson.dumps(told.document)), told.age_s)


class Simulation:
    """One rollout in a folder of its own; the same seed is the same rollout."""

    def __init__(self, root: Path, traffic: Traffic, seed: int) -> None:
        self.traffic = traffic
        self.random = np.random.default_rng(seed)
        self.books = Books(root)
        self.pids = 100
        self.epochs: dict[tuple[int, int], _Epoch] = {}
        self.books.workers = [self._worker(slot) for slot in range(traffic.workers)]
        self.requests = 0
        self.shares: dict[int, float] = {}  # of the candidate, by revision of the route
        sizes = self.random.lognormal(0.0, 1.0, traffic.keys)
        self.key_ends = np.cumsum(sizes / sizes.sum())
        self.place = self.random.random(traffic.keys)  # of a key in the split, the same for every revision
        # Some tenants fail more often than others, whoever answers them.
        self.fragility = self.random.gamma(2.0, 0.5, traffic.keys)
        self.loads = self.random.dirichlet(np.full(traffic.workers, 8.0))

    def run(self, most_s: float = 1500.0) -> Outcome:
        """To its end or for *most_s* seconds; a pause by a guard is resumed by somebody who has seen it."""
        books, random = self.books, self.random
        steps = [{"weight_percent": w, "min_time_s": s, "min_requests": n} for w, s, n in RAMP]
        rollout_id = books.start(steps=steps)
        books.follow()
        pauses: list[str] = []
        looks, passed_s = 0, 0.0
        while passed_s < most_s:
            looks += 1
            elapsed_s = float(np.clip(random.exponential(5.0), 0.25, 30.0))
            passed_s += elapsed_s
            self._serve(elapsed_s)
            books.tick(elapsed_s)
            state = books.find(rollout_id).state
            if state.phase in (*ENDED, "promoting", "aborting"):
                break
            if state.phase == "paused":
                pauses.append(f"{state.reason}: {state.why}")
                books.do(rollout_id, "resume")
            if random.random() < self.traffic.control_restarts:
                books.restart()
        found = books.find(rollout_id).state
        books.store.close()
        return Outcome(found.phase, found.why, self.requests, looks, tuple(pauses))

    # -- what happens between two looks ---------------------------------------------------------

    def _worker(self, slot: int) -> Worker:
        self.pids += 1
        return _Worker(slot, self.pids)

    def _serve(self, elapsed_s: float) -> None:
        """The workers answer what comes in *elapsed_s* seconds; some follow late, some die."""
        random, traffic = self.random, self.traffic
        slow = float(random.choice([1.0, 1.0, 1.0, 1.3, 2.0]))  # the machine is busy, for everybody
        outage = 8.0 if random.random() < 0.01 else 1.0  # of something that the model needs
        newest = self.books.desk.document().flags[ROUTE].revision
        for slot, load in enumerate(self.loads):
            worker = self.books.workers[slot]
            if random.random() < traffic.restarts:
                worker = self.books.workers[slot] = self._worker(slot)  # what it counted since the look is lost
            if worker.adopted is None or (worker.adopted != newest and random.random() < 0.8):
                self._follow(worker)
            requests = int(random.poisson(traffic.requests_s * elapsed_s * load))
            self._answer(worker, requests, elapsed_s, slow, min(1.0, traffic.base * outage))

    def _answer(self, worker: Worker, requests: int, elapsed_s: float, slow: float, base: float) -> None:
        share = self.shares.get(worker.adopted or 0, 0.0)
        if not share or not requests:
            return
        assert worker.adopted is not None
        random, traffic = self.random, self.traffic
        keys = np.searchsorted(self.key_ends, random.random(requests)).clip(0, traffic.keys - 1)
        keyless = random.random(requests) < traffic.keyless
        place = np.where(keyless, random.random(requests), self.place[keys])
        fragility = np.where(keyless, 1.0, self.fragility[keys])
        on_candidate = place < share
        for variant, mine in (("canary", on_candidate), ("stable", ~on_candidate)):
            n = int(mine.sum())
            if not n:
                continue
            worse, slower = (traffic.worse, traffic.slower) if variant == "canary" else (1.0, 1.0)
            failed = random.random(n) < np.minimum(1.0, base * worse * fragility[mine])
            late = random.random(n) < 0.0002 * slow
            epoch = self.epochs.setdefault((worker.pid, worker.adopted), _Epoch())
            names = np.where(keyless[mine], -1, keys[mine])
            more = {
                "eligible": n,
                "keys": self._count(epoch.keys, names),
                "errors": self._count(epoch.bad, names[failed]),
                "timeouts": self._count(epoch.bad, names[late & ~failed], 1),
            }
            if variant == "canary":  # the default version answers for it
                more["fallbacks"] = self._count(epoch.bad, names[failed | late], 2)
                self.requests += n
            worker.count(variant, **more)
            runs_s = random.lognormal(-7.6, 0.35, max(1, n // 4)) * slow * slower
            told = worker.counts[worker.adopted, variant]
            self._bin(told["run_s"], runs_s, n)
            self._sample(told["outputs"], min(n * 1.0, elapsed_s * 10 * _ROWS))

    def _follow(self, worker: Worker) -> None:
        worker.follow(self.books)
        if worker.adopted is not None and worker.adopted not in self.shares:
            document = self.books.desk.document()
            route = compile_route(MODEL, document.flags[ROUTE], document.bucketing)
            self.shares[worker.adopted] = sum(route.shares.get("2", ())) if len(route.split) > 1 else 0.0

    def _count(self, seen: set[int], names: Array, kind: int = 0) -> int:
        """Each key once per kind, requests without a key always."""
        named = {kind * self.traffic.keys + name for name in names[names >= 0].tolist()}
        fresh = named - seen
        seen |= fresh
        return len(fresh) + int((names < 0).sum())

    def _bin(self, into: dict[str, int], runs_s: Array, requests: int) -> None:
        """All but the first run answer as many requests each."""
        each = requests // len(runs_s)
        bins = np.floor(np.log(runs_s / 1e-6) / math.log(1.1)).astype(int)
        for place, runs in zip(*(found.tolist() for found in np.unique(bins[1:], return_counts=True)), strict=True):
            into[str(place)] = into.get(str(place), 0) + runs * each
        first = str(bins[0])
        into[first] = into.get(first, 0) + requests - each * (len(bins) - 1)

    def _sample(self, into: dict[str, dict[str, int]], rows: float) -> None:
        for output, shares, name in (("label", _CLASSES, "{}"), ("score", _SCORES / _SCORES.sum(), "p{}")):
            bins = into.setdefault(output, {})
            for place, count in enumerate(self.random.multinomial(int(rows), shares).tolist()):
                if count:
                    bins[name.format(place)] = bins.get(name.format(place), 0) + count


def simulate(traffic: Traffic, seed: int) -> Outcome:
    """One rollout, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="rollout-") as folder:
        return Simulation(Path(folder), traffic, seed).run()
