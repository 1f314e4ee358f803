"""This gateway against other servers on the same models: in turns with each, at several numbers of connections."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speed import machine, peers, servers
from speed.asks import one_row
from speed.models import Model
from speed.peers import Configuration, Peer
from speed.rounds import Bench, Contender, load, values
from speed.servers import Server

OURS, THEIRS = "sluicegate", "peer"
FULL = 32
PLACES = {"iris": (FULL, 1, 24, 128), "forest": (FULL,)}
# Peer -> place -> requests per second over the peer's that are promised.
LEADS: Mapping[str, Mapping[str, float]] = {
    "mosec": {"iris@32": 2.8, "forest@32": 2.2},
    "torchserve": {"iris@32": 6.0},
    "fastapi": {"iris@32": 8.0},
    "pytriton": {"iris@32": 18.0},
    "mlserver": {"iris@32": 18.0},
    "litserve": {"iris@32": 40.0},
    "bentoml": {"iris@32": 60.0},
    "rayserve": {"iris@32": 250.0},
}
# A configuration that does less than this share of the best one in a first trial is not measured any further.
_WORTH = 0.9
_TRIES = 3
_QUIET = 0.1  # share of the core


def measure(bench: Bench, *, environments: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Peers by name: `configurations` with what each gave, and `places` with the pairs of the best one there."""
    models = bench.models("iris", "forest")
    found: dict[str, Any] = {}
    with servers.gateway(bench.root, "against", models, servers.CACHE_OFF) as ours:
        for peer in peers.all_of(environments):
            if chosen and peer.name not in chosen:
                continue
            told: dict[str, Any] = {"title": peer.title, "set_up": peer.is_set_up}
            found[peer.name] = told
            if not peer.is_set_up:
                bench.tell(f"{peer.title} is not set up: benchmarks/peers/setup {peer.name}")
                continue
            try:
                _meet(bench, peer, models, ours, told)
            except KeyboardInterrupt:  # whoever has no time for all of them keeps those that are measured
                del found[peer.name]
                bench.fail("peers", RuntimeError(f"stopped before {peer.title} was measured"))
                break
    return {"peers": found}


def _meet(bench: Bench, peer: Peer, models: Mapping[str, Model], ours: Server, told: dict[str, Any]) -> None:
    """All configurations of one peer tried, and the best ones measured in turns with this gateway."""
    told |= {"versions": peer.versions(), "configurations": {}, "places": {}}
    for configuration in peer.configurations:
        about = told["configurations"][configuration.name] = {"settings": configuration.settings}
        _guarded(bench, _try, peer, configuration, models["iris"], about)
    for model in models.values():
        for configuration in peer.configurations:
            places = worth_measuring(told["configurations"], configuration.name, model)
            if places:
                _guarded(bench, _pair, peer, configuration, model, ours, places, told["places"])


def _guarded(
    bench: Bench, step: Callable[..., None], peer: Peer, configuration: Configuration, model: Model, *more: Any
) -> None:
    """A server that fails is told on the page, and the others are measured."""
    try:
        step(bench, peer, configuration, model, *more)
    except Exception as error:  # a foreign server may fail in any way
        bench.fail(f"{peer.title} ({configuration.name}), {model.name}", error)


def _try(bench: Bench, peer: Peer, configuration: Configuration, model: Model, about: dict[str, Any]) -> None:
    """A short look at one configuration: how soon it answers, its memory, and what it does at each place."""
    with peers.running(peer, configuration, model, bench.root) as (server, start_s):
        load(bench.root, server, configuration.ask(model), FULL, configuration.warm_s)
        for connections in PLACES[model.name]:
            rate = _best_of_tries(bench, server, configuration, model, connections)
            about.setdefault("trials", {})[f"{model.name}@{connections}"] = rate
            what = f"{peer.title} ({configuration.name}), {model.name}, connections: {connections}"
            bench.tell(f"{what}: {rate:,.0f} requests/s")
        about.setdefault("start_s", start_s)
        about.update(asdict(machine.memory(server.processes())))


def _best_of_tries(bench: Bench, server: Server, configuration: Configuration, model: Model, connections: int) -> float:
    """Requests per second, tried again while somebody else is busy on the servers' core: no peer shall lose by that."""
    best = 0.0
    for _ in range(_TRIES):
        sample = load(bench.root, server, configuration.ask(model), connections, configuration.measure_s)
        best = max(best, sample["requests_per_s"])
        if sample["others"] < _QUIET:
            break
    return best


def worth_measuring(configurations: Mapping[str, Any], name: str, model: Model) -> list[int]:
    """The numbers of connections at which a configuration may be the peer's best, by trials with iris."""
    worth = []
    for connections in PLACES[model.name]:
        place = f"iris@{connections}"
        trials = {
            each: told["trials"][place] for each, told in configurations.items() if place in told.get("trials", {})
        }
        if name in trials and trials[name] >= _WORTH * max(trials.values()):
            worth.append(connections)
    return worth


def _pair(
    bench: Bench,
    peer: Peer,
    configuration: Configuration,
    model: Model,
    ours: Server,
    connections_of: list[int],
    places: dict[str, Any],
) -> None:
    """One configuration in turns with this gateway. places: gets what is better than what is there."""
    own_ask, ask = one_row(servers.infer_path(model.name), model.rows[0]), configuration.ask(model)
    with peers.running(peer, configuration, model, bench.root) as (server, _):
        load(bench.root, server, ask, FULL, configuration.warm_s)
        for connections in connections_of:
            what = f"{peer.title} ({configuration.name}), {model.name}, connections: {connections}"
            pair = [
                Contender(OURS, ours, own_ask, connections, seconds=peers.MEASURE_S),
                Contender(THEIRS, server, ask, connections, seconds=configuration.measure_s),
            ]
            place = f"{model.name}@{connections}"
            series = bench.interleave(pair, what=what, warm=True)
            best = values(places.get(place, {}).get("series", {}).get(THEIRS, []), "requests_per_s")
            rates = values(series[THEIRS], "requests_per_s")
            if rates and statistics.median(rates) > statistics.median(best or [0.0]):
                places[place] = {"configuration": configuration.name, "series": series}
        servers.check_peer(server, ask, model, configuration.body)
