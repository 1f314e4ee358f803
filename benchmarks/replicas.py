"""Three gateways on one database behind a real proxy, restarted, stopped and flipped under load.

Each gateway has an address of its own; nginx and HAProxy stand in front with the configurations of deploy/proxy. Prints
a table in Markdown, which docs/operate.md quotes with its day and machine. Exit code 1: a request failed, or an event.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

import httpx
from restarts import Seen, load, peak_per_s, restart
from speed import machine

from tests.builders import classifier, write_package
from tests.deploy.proxies import PROXIES, free_port
from tests.end_to_end.flags import change, must_change
from tests.live import LiveGateway, eventually
from tests.postgres import PostgresServer, require

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
VERSIONS = ("1", "2")
_ESTABLISHED = "01"  # as /proc/net/tcp has it


class Fleet:
    """One control and a serving gateway per host, on a database of their own. A context manager."""

    def __init__(self, root: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.url = ""  # of the proxy in front, once there is one
        self.database = PostgresServer(require())
        self._root = root
        for version in VERSIONS:
            write_package(root / "models", classifier("iris", version))

    def __enter__(self) -> Fleet:
        self.database.start()
        self._stack.callback(self.database.remove)
        store = self.database.url(self.database.new_database())
        self.control = self._gateway("control", store)
        self._stack.enter_context(self.control)
        self.addresses = [f"{host}:{free_port(host)}" for host in HOSTS]
        self.replicas = [self._gateway(address, store) for address in self.addresses]
        for replica in self.replicas:
            self._stack.enter_context(replica)
        must_change(self.control, "iris.route", {"variants": {"green": "2"}})
        self._flips = itertools.cycle(("green", "stable"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _gateway(self, name: str, store: str) -> LiveGateway:
        state = self._root / name.replace(":", "-") / "state"
        state.parent.mkdir()
        host, _, port = name.partition(":")
        return LiveGateway(
            self._root / "models",
            state,
            role="serving" if port else "control",
            settings={"flags": {"store": store, "replica": name}},
            options=("--host", host, "--port", port) if port else (),
        )

    # -- what is done to it ---------------------------------------------------------------------------

    def restart_all(self) -> bool:
        """Replace the workers of one gateway after the other."""
        return all(restart(replica) for replica in self.replicas)

    def stop_two(self) -> bool:
        """Stop two of the three and start them again, one after the other."""
        for address, replica in list(zip(self.addresses, self.replicas, strict=True))[:2]:
            replica.stop()
            replica.start()
            _wait_taken_back(address, self.url)
        return True

    def flip(self) -> bool:
        """Send all to the other version, and look that this is so in less than a second."""
        variant = next(self._flips)
        reply = change(self.control, "iris.route", {"defaultVariant": variant})
        if reply.status_code != 200:
            return False
        until_s = time.monotonic() + 1.0
        revision = reply.headers["etag"].strip('"')
        return all(self._follows(replica, revision, until_s) for replica in self.replicas)

    def _follows(self, replica: LiveGateway, revision: str, until_s: float) -> bool:
        body = {"rows": [dict.fromkeys(classifier().features, 0.5)]}
        while time.monotonic() < until_s:
            if replica.data.post("/predict/iris", json=body).headers["x-flag-revision"] == revision:
                return True
        return False


def _wait_taken_back(address: str, proxy: str) -> None:
    """Wait until the proxy has found out that a gateway is there again: the next one is not stopped before.

    It is asked meanwhile, as the load may be over.
    """
    host, _, port = address.partition(":")
    local = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{int(port):04X}"

    def is_connected() -> bool:
        httpx.get(f"{proxy}/readyz")
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(line[1] == local and line[3] == _ESTABLISHED for line in lines)

    eventually(is_connected, f"the proxy asks {address} again")


@contextlib.contextmanager
def _in_front(name: str, fleet: Fleet, root: Path) -> Iterator[str]:
    """The proxy in front of the fleet; gives its address."""
    root.mkdir()
    port = free_port()
    command = PROXIES[name][1](root, port, fleet.addresses)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: httpx.get(f"{url}/readyz").is_success, "the proxy lets requests through")
        fleet.url = url
        yield url
    finally:
        process.terminate()
        process.wait(20)


EVENTS: Mapping[str, Callable[[Fleet], Callable[[], bool]]] = {
    "workers of all three replaced": lambda fleet: fleet.restart_all,
    "two of three stopped and started": lambda fleet: fleet.stop_two,
    "blue/green flip": lambda fleet: fleet.flip,
}


def _row(proxy: str, event: str, seen: Seen, peak: float, took_s: float, events: Mapping[bool, int]) -> str:
    asked = sum(seen.statuses.values())
    per_s = asked / took_s
    return (
        f"| {proxy} | {event} | {events.get(True, 0)} | {asked:,} | {per_s:,.0f} | {per_s / peak:.0%} | {seen.failed} "
        f"| {seen.late_ms(0.5):.1f} ms | {seen.late_ms(0.99):.1f} ms |"
    )


def measured(proxies: list[str], requests: int, share: float, clients: int) -> tuple[list[str], list[str]]:
    """The rows of the table, and what went wrong."""
    rows: list[str] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="replicas-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for proxy in proxies:
            (root / proxy).mkdir()
            with Fleet(root / proxy) as fleet, _in_front(proxy, fleet, root / proxy / "proxy") as url:
                peak = asyncio.run(peak_per_s(url, clients))
                for event, bound in EVENTS.items():
                    print(f"{proxy}: {event} ...", file=sys.stderr, flush=True)
                    begun_s = time.monotonic()
                    seen, events = asyncio.run(load(url, requests, share * peak, clients, bound(fleet)))
                    rows.append(_row(proxy, event, seen, peak, seen.last_s - begun_s, events))
                    if seen.failed or events.keys() != {True}:
                        wrong.append(f"{proxy}, {event}: {dict(seen.statuses)}, events {dict(events)}")
    return rows, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--requests", type=int, default=100_000, help="how many per event and proxy (default: 100000)")
    add("--share", type=float, default=0.7, help="of the peak that is asked for (default: 0.7)")
    add("--clients", type=int, default=32, help="connections at once (default: 32)")
    add("--proxy", action="append", choices=PROXIES, help="only this one (default: all)")
    options = parser.parse_args()
    rows, wrong = measured(options.proxy or list(PROXIES), options.requests, options.share, options.clients)
    told = machine.describe()
    print(f"Measured on {told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}.\n")
    head = "| proxy | event | times | requests | per second | of the peak | failed | p50 | p99 |"
    print("\n".join([head, "|---" * 9 + "|", *rows, *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
