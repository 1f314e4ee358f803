"""The control process as its supervisor sees it: ready, beating, stopping, killed, and short of its store."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from gateway.flags.lastgood import read_last_known_good
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail
from tests import builders
from tests.control.process import ControlProcess, route
from tests.live import eventually


def test_it_reports_ready_once_it_answers_and_then_beats(control: ControlProcess) -> None:
    assert control.client.get("/readyz").json() == {"ready": True}
    control.wait_report("beat")
    control.wait_report("beat")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(control: ControlProcess, number: signal.Signals) -> None:
    control.stop(number)
    control.start()


def test_signals_that_come_twice_still_end_it_with_exit_code_0(control: ControlProcess) -> None:
    for _ in range(3):
        os.kill(control.pid, signal.SIGTERM)
    control.wait_stopped()
    control.start()


def test_the_end_of_the_lifeline_ends_it_with_exit_code_0(control: ControlProcess) -> None:
    control.cut_lifeline()
    control.wait_stopped()
    control.start()


def test_requests_that_it_took_are_answered_before_it_stops(control: ControlProcess) -> None:
    answered: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with control.client_as(control.admin_token) as client:
            while not done.is_set():
                # a connection that was idle may be closed; a request that was taken must be answered, and with 200
                with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    answered.append(client.get("/admin/v1/flags").status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: len(answered) > 5, "some answers")
    control.stop()
    before = len(answered)
    control.start()
    eventually(lambda: len(answered) > before, "answers of the new process")
    done.set()
    asking.join()
    assert set(answered) == {200}


def test_kill_9_loses_no_acknowledged_change_and_the_last_known_good_file_follows(control: ControlProcess) -> None:
    acknowledged = 0
    for round_number in range(3):
        writing = threading.Thread(target=control.kill)
        step = 0
        try:
            while True:
                key = f"m{step % 3}.route"
                flag = {**route(), "metadata": {"step": round_number * 10**6 + step}}
                based_on = {"if-match": "*"} if round_number or step >= 3 else {"if-none-match": "*"}
                headers = {**based_on, "x-change-reason": f"step {step}"}
                reply = control.client.put(f"/admin/v1/flags/{key}", json=flag, headers=headers)
                assert reply.status_code in (200, 201), reply.text
                acknowledged = int(reply.headers["etag"].strip('"'))
                step += 1
                if step == 10:
                    writing.start()
        except httpx.TransportError:
            writing.join()
        control.start()
        everything = control.client.get("/admin/v1/flags")
        assert int(everything.headers["etag"].strip('"')) >= acknowledged
        kept = read_last_known_good(control.state / "flags.lkg.json")
        assert kept is not None
        assert f'"{kept.revision}"' == everything.headers["etag"]
    store = SqliteStore(control.state / "flags.sqlite", read_only=True)
    assert verify_trail(store).seq >= acknowledged
    store.close()


def test_a_lost_store_is_restored_from_the_last_known_good_file(control: ControlProcess, models: Path) -> None:
    builders.write_package(models, builders.classifier("iris", "1"))
    control.put("iris.route", route())
    before = int(control.patch("iris.route", {"state": "DISABLED"}).headers["etag"].strip('"'))
    control.kill()
    for path in control.state.glob("flags.sqlite*"):
        path.unlink()
    control.start()
    after = control.client.get("/admin/v1/flags/iris.route")
    assert after.json()["state"] == "DISABLED"  # and not a seeded route to the highest version
    assert int(after.headers["etag"].strip('"')) == before + 1
    row = control.client.get("/admin/v1/flags/iris.route/history").json()["rows"][0]
    assert (row["actor"], row["verb"]) == ("system", "flags.restore")


def test_a_store_that_is_lost_under_the_running_process_is_restored_too(control: ControlProcess, models: Path) -> None:
    builders.write_package(models, builders.classifier("iris", "1"))
    control.put("iris.route", route(stable="1", canary="2"))
    builders.write_package(models, builders.classifier("iris", "2"))
    before = int(control.patch("iris.route", {"state": "DISABLED"}).headers["etag"].strip('"'))
    for path in control.state.glob("flags.sqlite*"):
        path.unlink()
    control.wait_report("beat")
    control.wait_report("beat")  # two looks at the models directory later
    after = control.client.get("/admin/v1/flags/iris.route")
    assert after.json()["state"] == "DISABLED"  # and not a seeded route to the highest version
    assert int(after.headers["etag"].strip('"')) == before + 1
    assert control.put("wine.route", route()).status_code == 201


def test_without_store_and_readable_last_known_good_file_nothing_is_seeded(
    control: ControlProcess, models: Path
) -> None:
    control.put("iris.route", route())
    control.kill()
    for path in control.state.glob("flags.sqlite*"):
        path.unlink()
    (control.state / "flags.lkg.json").write_text('{"flags": {"iris.ro')
    builders.write_package(models, builders.classifier("iris", "1"))
    control.start()
    control.wait_report("beat")
    control.wait_report("beat")  # two looks at the models directory later
    assert control.client.get("/admin/v1/flags").json()["flags"] == {}
    assert "flags.lkg.json" in control.log
    (control.state / "flags.lkg.json").unlink()  # the operator decides that this is a new start
    eventually(lambda: control.client.get("/admin/v1/flags/iris.route").status_code == 200, "iris has a route")


def test_a_broken_store_is_told_and_refuses_writes_until_it_is_whole(control: ControlProcess) -> None:
    control.put("iris.route", route())
    control.kill()
    store = control.state / "flags.sqlite"
    whole = {path: path.read_bytes() for path in control.state.glob("flags.sqlite*")}
    for path in whole:
        path.unlink()
    store.write_bytes(b"scribble" * 1000)
    control.start()
    for reply in (control.client.get("/readyz"), control.put("wine.route", route())):
        assert reply.status_code == 503
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["code"] == "store_unavailable"
        assert int(reply.headers["retry-after"]) >= 1
    assert control.client.get("/livez").status_code == 200
    assert store.read_bytes() == b"scribble" * 1000  # left for someone to look at
    for path, content in whole.items():
        path.write_bytes(content)
    eventually(lambda: control.client.get("/readyz").status_code == 200, "the store can be read again")
    assert control.client.get("/admin/v1/flags/iris.route").status_code == 200
    assert control.put("wine.route", route()).status_code == 201
