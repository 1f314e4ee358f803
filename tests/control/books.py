"""The books of rollouts on a real store, with the controller's clock and the workers' documents by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.control.beside import Beside
from gateway.control.changes import Desk
from gateway.control.controller import Controller
from gateway.control.record import Rollout
from gateway.control.rollouts import Rollouts
from gateway.control.seed import seed
from gateway.control.status import WorkerStatus
from gateway.flags.audit import Author
from gateway.flags.compile import compile_route
from gateway.flags.document import Json, dump_flag
from gateway.flags.sqlite import SqliteStore
from gateway.models.source import DirectorySource
from tests.puppet import FakeClock

MODEL = "iris"
ROUTE = "iris.route"
OPS = Author("ops", token_id="t1")


class Worker:
    """A worker as its status document shows it: follows the flags when told to, loads what it is told can be loaded."""

    def __init__(self, slot: int, pid: int) -> None:
        self.slot = slot
        self.pid = pid
        self.adopted: int | None = None
        self.versions: dict[str, dict[str, str]] = {}
        self.breakers: list[dict[str, Any]] = []
        self.counts: dict[tuple[int, str], dict[str, Any]] = {}

    def follow(self, books: Books, *, loads: frozenset[str] = frozenset({"1", "2", "3"})) -> None:
        """Read the flags; load what they name, adopt what is warm."""
        document = books.store.load()
        assert document is not None
        flag = document.flags[ROUTE]
        route = compile_route(MODEL, flag, document.bucketing)
        for version in route.named:
            state = "warm" if version in loads else "failed"
            self.versions[version] = {"state": state, "reason": "" if state == "warm" else "it is broken"}
        for gone in self.versions.keys() - route.named:
            del self.versions[gone]
        if all(self.versions[version]["state"] == "warm" for version in route.reachable):
            self.adopted = flag.revision

    def count(self, variant: str, **counts: Any) -> None:
        """Add to what was counted under the route that is adopted."""
        assert self.adopted is not None
        found = self.counts.setdefault((self.adopted, variant), {"eligible": 0, "run_s": {}, "outputs": {}})
        for name, more in counts.items():
            found[name] = found.get(name, 0) + more

    def status(self) -> WorkerStatus:
        signals = [
            {"model": MODEL, "version": "?", "variant": variant, "revision": revision, **counts}
            for (revision, variant), counts in self.counts.items()
        ]
        models = {MODEL: {"adopted_revision": self.adopted, "versions": self.versions}}
        document = {"slot": self.slot, "pid": self.pid, "boot": "b", "models": models, "signals": signals}
        return WorkerStatus({**document, "breakers": self.breakers}, 0.0)


class Overtaken(Rollouts):
    """meddle: what somebody else does right after the route was read."""

    meddle: Callable[[], None] = staticmethod(lambda: None)

    def route_of(self, model: str) -> tuple[Json | None, int]:
        found = super().route_of(model)
        self.meddle()
        return found


class Books:
    """A control process without HTTP. `restart` forgets all that is not on the disk.

    beside: what the monitor says of each candidate.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for version in ("1", "2", "3"):
            path = root / "models" / MODEL / version / "model.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        self.clock = FakeClock()
        self.wall_s = 1_790_000_000.0
        self.workers: list[Worker] = []
        self.beside: Beside | None = None
        self.restart()
        seed(self.desk, {MODEL: "1"})

    def restart(self) -> None:
        self.store = SqliteStore(self.root / "state" / "flags.sqlite", clock=lambda: self.wall_s)
        source = DirectorySource(self.root / "models")
        self.desk = Desk(
            self.store, last_known_good=self.root / "state" / "flags.lkg.json", source=source, workers=self.statuses
        )
        self.desk.recover()
        self.rollouts = self.make_rollouts()
        self.controller = Controller(
            self.rollouts, self.statuses, drift=lambda _model, _version: self.beside, clock=self.clock
        )

    def make_rollouts(self) -> Overtaken:
        return Overtaken(self.store, self.desk, clock=lambda: self.wall_s)

    def statuses(self) -> list[WorkerStatus]:
        return [worker.status() for worker in self.workers]

    def tick(self, elapsed_s: float = 0.25) -> None:
        self.clock.now_s += elapsed_s
        self.wall_s += elapsed_s
        self.controller.tick()

    def follow(self) -> None:
        """All workers read the flags, and the controller looks at them."""
        for worker in self.workers:
            worker.follow(self)
        self.tick()

    def start(self, **plan: Any) -> str:
        plain = {"strategy": "canary", "version": "2", **plan}
        return self.rollouts.start(MODEL, plain, author=OPS, reason="a test").id

    def do(self, rollout_id: str, verb: str) -> Rollout:
        return self.rollouts.command(rollout_id, verb, author=OPS, reason="a test")

    def find(self, rollout_id: str) -> Rollout:
        return self.rollouts.find(rollout_id)

    def phase(self, rollout_id: str) -> str:
        state = self.find(rollout_id).state
        return f"{state.phase} {state.reason}".strip()

    def route(self) -> Json:
        """The route now, without its revision."""
        document = self.store.load()
        assert document is not None
        plain = dump_flag(document.flags[ROUTE])
        return {**plain, "metadata": {name: v for name, v in plain["metadata"].items() if name != "revision"}}

    def weights(self) -> dict[str, int]:
        """Variant -> weight of the route's split."""
        split = (self.route().get("targeting") or {}).get("fractional", [])
        return dict(split)

    def edit(self, **fields: Any) -> None:
        """Somebody else's change of the route."""
        self.desk.change_flag(
            ROUTE,
            lambda before: {**(before or {}), **fields},
            expected_revision=None,
            author=OPS,
            verb="flag.put",
            reason="a test",
        )

    def verbs(self, rollout_id: str) -> list[str]:
        """What the audit says of a rollout, oldest first."""
        return [row.verb.removeprefix("rollout.") for row in self.store.history(f"rollout:{rollout_id}", limit=1000)]
