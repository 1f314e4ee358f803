"""A PostgreSQL that is stopped, slow, or cut off in the middle of a transaction: predictions go on, edits hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from faults import stage
from faults.edits import Editor
from faults.load import Load
from faults.trial import Fault, Trial
from tests.gate import Gate
from tests.live import LiveGateway, SettingsTable, eventually
from tests.postgres import PostgresServer, require

# In both directions, for each piece of what is said.
DELAY_S = 0.2
_WORDS = (b"INSERT", b"COMMIT")


@dataclass(frozen=True, slots=True)
class _Scene:
    live: LiveGateway
    load: Load
    editor: Editor
    server: PostgresServer
    gate: Gate


@contextlib.contextmanager
def _scene(trial: Trial) -> Iterator[_Scene]:
    """A gateway on a database behind a gate, under load and edits until it is left; then all is checked."""
    server = PostgresServer(require())
    with contextlib.ExitStack() as stack:
        stack.callback(server.remove)
        server.start()
        stack.callback(_stop, server)
        gate = stack.enter_context(Gate(server.port))
        settings: SettingsTable = {"flags": {"store": server.url(server.new_database(), port=gate.port)}}
        live = stack.enter_context(stage.gateway(trial, stage.iris, settings))
        with Editor(live) as editor, Load(live.data_url, stage.ask_iris, seed=trial.seed) as load:
            load.wait_answered(20)
            editor.wait_acknowledged(2)
            yield _Scene(live, load, editor, server, gate)
            load.wait_answered(20)
            editor.wait_acknowledged(2)
        editor.check(trial)
        stage.none_failed(trial, load)


def _stop(server: PostgresServer) -> None:
    with contextlib.suppress(AssertionError):  # it is stopped
        server.stop("immediate")


def stopped(trial: Trial) -> None:
    """As by a crash, and started again: changes are refused meanwhile, and taken again afterwards."""
    with _scene(trial) as on:
        for _turn in trial.turns():
            time.sleep(trial.draw.uniform(0.0, 0.5))  # the moment, drawn by the seed
            on.server.stop("immediate")
            on.editor.wait_refused(503)
            on.load.wait_answered(20)
            on.server.start()
            began_s = time.monotonic()
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)


def slow(trial: Trial) -> None:
    """Each piece of what is said to it and by it is on its way for long."""
    with _scene(trial) as on:
        for _turn in trial.turns():
            on.gate.delay_s = DELAY_S
            on.load.wait_answered(60)
            began_s = time.monotonic()
            on.gate.delay_s = 0.0
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)


def cut_off(trial: Trial) -> None:
    """The connection is silent from the middle of a transaction on, and then ended: no change is there by half."""
    with _scene(trial) as on:
        for _turn in trial.turns():
            on.gate.freeze_at(trial.draw.choice(_WORDS))
            eventually(lambda: on.gate.is_frozen, "a transaction has begun")
            time.sleep(trial.draw.uniform(0.0, 2.0))  # how long it is silent, drawn by the seed
            on.gate.close()
            on.gate.open()
            began_s = time.monotonic()
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)


FAULTS = (
    Fault("PostgreSQL stopped", 8, stopped),
    Fault("PostgreSQL slow", 8, slow),
    Fault("PostgreSQL cut off in mid-transaction", 15, cut_off),
)
