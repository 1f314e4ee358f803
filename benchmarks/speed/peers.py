"""Other servers for the same models: how each is started, read from its folder in benchmarks/peers."""

from __future__ import annotations

import contextlib
import sysconfig
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from speed import machine, servers
from speed.asks import Ask, one_row
from speed.models import Model
from speed.servers import Server

FOLDER = machine.ROOT / "benchmarks" / "peers"
# In this order they are measured.
NAMES = ("fastapi", "mosec", "mlserver", "bentoml", "litserve", "rayserve", "torchserve", "pytriton")
_START_TIMEOUT_S = 40.0
_WARM_S = MEASURE_S = 1


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run a peer.

    settings: what is special about it, for people. prepare: a command to run before. Commands and values of the
    environment are templates of {bin}, {here}, {port}, {port2}, {port3}, {onnx}, {model}, {libdir} and {scratch}.
    warm_s: load before anything is measured; measure_s: of one measurement.
    """

    name: str
    settings: str
    command: tuple[str, ...]
    path: str
    body: str
    environment: Mapping[str, str]
    prepare: tuple[str, ...]
    warm_s: int
    measure_s: int

    def ask(self, model: Model) -> Ask:
        """One-row requests as this server wants them."""
        return one_row(self.path.format(model=model.name), model.rows[0], keyed=False, style=self.body)


@dataclass(frozen=True, slots=True)
class Peer:
    """One other server, in an environment of its own."""

    name: str
    title: str
    environment: Path
    configurations: tuple[Configuration, ...]

    @property
    def is_set_up(self) -> bool:
        """Whether its environment is there with the versions that are wanted."""
        stamp = self.environment / "requirements.txt"
        return stamp.exists() and stamp.read_text() == (FOLDER / self.name / "requirements.txt").read_text()

    def versions(self) -> str:
        """The packages that it was chosen for, with their versions."""
        wanted, _, _ = (FOLDER / self.name / "requirements.txt").read_text().partition("\n#")
        return ", ".join(line.replace("==", " ") for line in wanted.splitlines())


def all_of(environments: Path) -> list[Peer]:
    """All peers, set up or not."""
    return [_read(name, environments / name) for name in NAMES]


def _read(name: str, environment: Path) -> Peer:
    told = tomllib.loads((FOLDER / name / "peer.toml").read_text())
    configurations = tuple(
        Configuration(
            each,
            said["settings"],
            tuple(said.get("command", told.get("command"))),
            said.get("path", told.get("path")),
            told["body"],
            environment={**told.get("environment", {}), **said.get("environment", {})},
            prepare=tuple(said.get("prepare", told.get("prepare", ()))),
            warm_s=told.get("warm_s", _WARM_S),
            measure_s=told.get("measure_s", MEASURE_S),
        )
        for each, said in told["configurations"].items()
    )
    return Peer(name, told["title"], environment, configurations)


@contextlib.contextmanager
def running(peer: Peer, configuration: Configuration, model: Model, root: Path) -> Iterator[tuple[Server, float]]:
    """A peer that serves one model, and the seconds from its start to its first right answer."""
    scratch = root / f"{peer.name}-{configuration.name}-{model.name}".replace(" ", "-")
    scratch.mkdir(exist_ok=True)
    port = machine.free_port()
    given = {"bin": peer.environment / "bin", "here": FOLDER / peer.name, "port": port, "port2": machine.free_port(),
             "port3": machine.free_port(), "onnx": model.onnx, "model": model.name, "scratch": scratch,
             "libdir": sysconfig.get_config_var("LIBDIR")}  # fmt: skip
    environment = {"PATH": f"{peer.environment / 'bin'}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "",
                   "HOME": str(scratch), "OMP_NUM_THREADS": "1"}  # fmt: skip
    environment |= {name: value.format(**given) for name, value in configuration.environment.items()}
    log = root / f"{scratch.name}.log"
    if configuration.prepare:
        command = [word.format(**given) for word in configuration.prepare]
        with machine.pinned(command, log, environment, machine.LOAD_CORE) as process:
            if process.wait(_START_TIMEOUT_S) != 0:
                raise machine.NotReady(f"its preparation failed: {_tail(log)}")
    began_s = time.monotonic()
    with machine.pinned([word.format(**given) for word in configuration.command], log, environment) as process:
        server = Server(f"{peer.title} ({configuration.name})", process.pid, f"http://127.0.0.1:{port}")
        ask = configuration.ask(model)

        def answers() -> bool:
            try:
                httpx.get(server.url, timeout=1.0)  # a light question first: most refuse connections for long
                servers.check_peer(server, ask, model, configuration.body)
            except (servers.WrongAnswer, httpx.TransportError):
                return False
            return True

        try:
            machine.wait_for(answers, process, _START_TIMEOUT_S)
        except machine.NotReady as error:
            raise machine.NotReady(f"{error}; {_why(server, ask, model, configuration.body)}; {_tail(log)}") from error
        yield server, time.monotonic() - began_s


def _why(server: Server, ask: Ask, model: Model, style: str) -> str:
    try:
        servers.check_peer(server, ask, model, style)
    except (servers.WrongAnswer, httpx.TransportError) as error:
        return str(error)
    return "it answers now"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-600:]
