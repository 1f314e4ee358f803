"""This gateway against other servers on the same models: in turns with each, at several numbers of connections."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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
PLACES = (("iris", FULL), ("iris", 1), ("iris", 24), ("iris", 128), ("forest", FULL))
_SECONDS = 1
_FEW_ROUNDS = 3
# A configuration that is this much slower in a first trial than the best one so far is not measured any further.
_WORTH = 0.8


def measure(bench: Bench, *, environments: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Peers by name: `configurations` with what each gave, and `places` with the pairs of the best one there."""
    models = bench.models("iris", "forest")
    found: dict[str, Any] = {}
    with servers.gateway(bench.root, "against", models, servers.CACHE_OFF) as ours:
        for peer in peers.all_of(environments):
            if chosen and peer.name not in chosen:
                continue
            if not peer.is_set_up:
                found[peer.name] = {"title": peer.title, "set_up": False}
                bench.tell(f"{peer.title} is not set up: benchmarks/peers/setup {peer.name}")
                continue
            found[peer.name] = _peer(bench, peer, ours, models)
    return {"peers": found}


def _peer(bench: Bench, peer: Peer, ours: Server, models: dict[str, Model]) -> dict[str, Any]:
    told: dict[str, Any] = {"title": peer.title, "set_up": True, "versions": peer.versions(), "configurations": {},
                            "places": {}}  # fmt: skip
    best: dict[str, float] = {}
    for configuration in peer.configurations:
        about = told["configurations"][configuration.name] = {"settings": configuration.settings}
        for model in models.values():
            what = f"{peer.title} ({configuration.name}), {model.name}"
            try:
                _configuration(bench, peer, configuration, ours, model, about, best, told["places"])
            except Exception as error:  # a server that fails is told, the others are measured
                bench.fail(what, error)
    return told


def _configuration(
    bench: Bench,
    peer: Peer,
    configuration: Configuration,
    ours: Server,
    model: Model,
    about: dict[str, Any],
    best: dict[str, float],
    places: dict[str, Any],
) -> None:
    """Start one server of a peer and measure it wherever it may be the best; *best* and *places* are by place."""
    what = f"{peer.title} ({configuration.name}), {model.name}"
    own_ask = one_row(servers.infer_path(model.name), model.rows[0])
    ask = one_row(configuration.path, model.rows[0], keyed=False, style=configuration.body)
    with peers.running(peer, configuration, model, bench.root) as (server, start_s):
        if model.name == "iris":
            about["start_s"] = start_s
        for name, connections in PLACES:
            if name != model.name:
                continue
            place = f"{name}@{connections}"
            trial = load(bench.root, server, ask, connections, _SECONDS)["requests_per_s"]
            about.setdefault("trials", {})[place] = trial
            bench.tell(f"{what}, {connections} connections: {trial:.0f}/s")
            if trial < _WORTH * best.get(place, 0.0):
                continue
            pair = [Contender(OURS, ours, own_ask, connections), Contender(THEIRS, server, ask, connections)]
            rounds = bench.rounds if connections == FULL else min(_FEW_ROUNDS, bench.rounds)
            series = bench.interleave(pair, rounds=rounds, seconds=_SECONDS, what=f"{what}, {connections} connections")
            rates = values(series[THEIRS], "requests_per_s")
            if rates and statistics.median(rates) > best.get(place, 0.0):
                best[place] = statistics.median(rates)
                places[place] = {"configuration": configuration.name, "series": series}
        if model.name == "iris":
            about |= asdict(machine.memory(server.processes()))
        servers.check_peer(server, ask, model, configuration.body)
