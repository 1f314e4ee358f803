"""Interleaved rounds: each measures every contender once, in an order drawn anew, so that drift hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from speed import asks, machine, models, wrk
from speed.asks import Ask
from speed.servers import Server

_WARM_S = 1
_SETTLE_S = 30.0

# One measurement of one contender; None where it failed.
Samples = list[dict[str, float] | None]


@dataclass(frozen=True, slots=True)
class Contender:
    """One kind of load on one server. seconds: if not those of the run; measure: what gives a sample instead of wrk."""

    name: str
    server: Server | None = None
    ask: Ask | None = None
    connections: int = 32
    measure: Callable[[], dict[str, float]] | None = None
    seconds: int | None = None


@dataclass(slots=True)
class Bench:
    """One run: how long it measures, where it keeps its files, and what failed on the way."""

    root: Path
    rounds: int
    seconds: int
    began_s: float = field(default_factory=time.monotonic)
    failures: list[str] = field(default_factory=list)
    _models: dict[str, models.Model] = field(default_factory=dict)

    def models(self, *names: str) -> dict[str, models.Model]:
        """The named models, trained and converted when they are first asked for."""
        for name in names:
            if name not in self._models:
                self.tell(f"training and converting {name}")
                self._models.update(models.make(self.root, [name]))
        return {name: self._models[name] for name in names}

    def tell(self, text: str) -> None:
        """Progress, with the time since the start."""
        passed_s = int(time.monotonic() - self.began_s)
        print(f"{passed_s // 60:3d}:{passed_s % 60:02d}  {text}", flush=True)

    def fail(self, what: str, error: Exception) -> None:
        """Keep a failure for the page, and go on."""
        self.failures.append(f"{what}: {error}")
        self.tell(f"FAILED {what}: {error}")

    def interleave(
        self, contenders: Sequence[Contender], *, what: str, rounds: int | None = None, warm: bool = False
    ) -> dict[str, Samples]:
        """Samples by name of contender, one a round. A contender that fails is left out of the later rounds.

        warm: each was loaded already, so that caches, learned batch sizes and the like are what they stay.
        """
        found: dict[str, Samples] = {contender.name: [] for contender in contenders}
        out: set[str] = set()
        for contender in contenders:
            if contender.server is not None and not warm:
                try:
                    self._measure(replace(contender, seconds=_WARM_S))
                    machine.wait_idle(contender.server.processes, _SETTLE_S)
                except Exception as error:  # whatever it is, the others are measured on
                    out.add(contender.name)
                    self.fail(f"{what}, {contender.name}", error)
        rounds = rounds or self.rounds
        for turn in range(rounds):
            for contender in random.sample(contenders, len(contenders)):
                sample = None
                if contender.name not in out:
                    try:
                        sample = self._measure(contender)
                    except Exception as error:  # whatever a server or its load did, the others are measured on
                        out.add(contender.name)
                        self.fail(f"{what}, {contender.name}", error)
                found[contender.name].append(sample)
            self.tell(f"{what}: round {turn + 1} of {rounds}")
        return found

    def _measure(self, contender: Contender) -> dict[str, float]:
        if contender.measure is not None:
            return contender.measure()
        assert contender.server is not None
        assert contender.ask is not None
        return load(
            self.root, contender.server, contender.ask, contender.connections, contender.seconds or self.seconds
        )


def load(root: Path, server: Server, ask: Ask, connections: int, seconds: int) -> dict[str, float]:
    """One run of wrk against one server, and the processor time per request of all its processes meanwhile.

    others: the share of the servers' core that was busy with something else.
    """
    script = root / "ask.lua"
    script.write_text(asks.script(ask, server.url, random.randrange(asks.DISTINCT)))
    pids = server.processes()
    began_s, busy_s, before_s = time.monotonic(), machine.core_busy_s(machine.SERVER_CORE), machine.cpu_s(pids)
    seen = wrk.run(script, server.url, connections=connections, seconds=seconds)
    used_s = machine.cpu_s(pids) - before_s
    others_s = machine.core_busy_s(machine.SERVER_CORE) - busy_s - used_s
    sample = asdict(seen)
    sample["cpu_us"] = used_s / seen.requests * 1e6
    sample["others"] = max(0.0, others_s) / (time.monotonic() - began_s)
    return sample


def values(samples: Samples, figure: str) -> list[float]:
    """One figure of all rounds that have it."""
    return [sample[figure] for sample in samples if sample is not None and figure in sample]


def ratios(own: Samples, other: Samples, figure: str) -> list[float]:
    """*own* over *other*, round by round, where both were measured."""
    pairs = [(a, b) for a, b in zip(own, other, strict=False) if a is not None and b is not None]
    return [a[figure] / b[figure] for a, b in pairs if figure in a and b.get(figure)]


def as_part(series: Mapping[str, Samples], **more: Any) -> dict[str, Any]:
    """What a part of the benchmark hands on, as plain values for JSON."""
    return {"series": {name: list(samples) for name, samples in series.items()}, **more}
