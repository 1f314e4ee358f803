"""How many workers, hosts and bytes a load needs, from the processor time that a request was measured to take.

    python benchmarks/capacity.py --rps 5000 --cpu-us 60 --host-cores 4

Arithmetic and no model of queues: docs/scaling.md says what goes in and what it leaves out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Resident memory in MB, as in RESULTS.md, "Start and memory": a worker after a second of load, and what `serve` has
# beside its worker (supervisor, control, monitor).
WORKER_MB = 84
BESIDE_MB = 351 - 74


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. rps: requests a second at the peak. cpu_us: of one request, in the worker's process."""

    rps: float
    cpu_us: float
    utilization: float  # of a worker's processor, at the peak
    host_cores: int
    cores_aside: float  # of each host, for monitor, control, kernel and neighbours
    hosts_lost: int  # that may be away at the peak
    model_mb: float  # of all loaded versions, in each worker
    cache_mb: float  # cache.max_bytes, in each worker


@dataclass(frozen=True, slots=True)
class Plan:
    cores: float  # that requests keep busy
    workers: int  # that are needed at the peak
    workers_per_host: int
    hosts: int  # with those that may be lost
    utilization: float  # of each worker when all hosts are there
    host_mb: int


def plan(load: Load) -> Plan:
    """The least that carries the load. Raises ValueError if a host has no core for a worker."""
    workers_per_host = math.floor(load.host_cores - load.cores_aside)
    if workers_per_host < 1:
        raise ValueError(f"of {load.host_cores} cores {load.cores_aside:g} aside leave no core for a worker")
    cores = load.rps * load.cpu_us / 1e6
    workers = max(1, math.ceil(cores / load.utilization))
    hosts = math.ceil(workers / workers_per_host) + load.hosts_lost
    host_mb = BESIDE_MB + workers_per_host * (WORKER_MB + load.model_mb + load.cache_mb)
    return Plan(cores, workers, workers_per_host, hosts, cores / (hosts * workers_per_host), math.ceil(host_mb))


def lines(load: Load, found: Plan) -> list[str]:
    """The arithmetic, a step a line."""
    return [
        f"{load.rps:,.0f} requests/s x {load.cpu_us:g} us = {found.cores:.2f} cores busy",
        f"/ {load.utilization:.0%} busy at the peak = {found.workers} workers",
        f"{load.host_cores} cores a host - {load.cores_aside:g} aside = {found.workers_per_host} workers a host",
        f"{found.workers} / {found.workers_per_host}, and {load.hosts_lost} that may be lost = {found.hosts} hosts "
        f"({found.utilization:.0%} busy while all are there)",
        f"memory of a host: {BESIDE_MB} + {found.workers_per_host} x ({WORKER_MB} + {load.model_mb:g} of models + "
        f"{load.cache_mb:g} of cache) = {found.host_mb:,} MB",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rps", type=float, required=True, help="requests a second at the peak")
    add("--cpu-us", type=float, required=True, help="processor time of one request, in microseconds")
    add("--utilization", type=float, default=0.5, help="how busy a worker may be at the peak (default: 0.5)")
    add("--host-cores", type=int, default=4, help="cores of a host, or of a pod (default: 4)")
    add("--cores-aside", type=float, default=0.5, help="of each host, for all but workers (default: 0.5)")
    add("--hosts-lost", type=int, default=1, help="hosts that may be away at the peak (default: 1)")
    add("--model-mb", type=float, default=0.0, help="memory of all loaded versions in a worker (default: 0)")
    add("--cache-mb", type=float, default=64.0, help="cache.max_bytes (default: 64)")
    options = parser.parse_args(arguments)
    if options.rps <= 0 or options.cpu_us <= 0 or not 0 < options.utilization <= 1:
        parser.error("--rps and --cpu-us must be above 0, --utilization above 0 and at most 1")
    load = Load(**vars(options))
    try:
        found = plan(load)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(lines(load, found)))


if __name__ == "__main__":
    main()
