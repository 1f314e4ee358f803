"""Labels over HTTP: both doors, wrong ones named, and none lost that was acknowledged before a kill -9."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.samples.labels import Label, LabelReader, from_line
from tests.builders import classifier, write_package
from tests.live import LiveGateway, eventually

IRIS = classifier()
OPERATE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text()
ROW = {"rows": [dict.fromkeys(IRIS.features, 1.0)]}


def kept(state: Path) -> list[Label]:
    blocks = LabelReader(state / "samples").read(10**9)
    return [from_line(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("feedback")
    write_package(root / "models", IRIS)
    settings = {"server": {"door": request.param}, "labels": {"max_body_bytes": 10_000}}
    with LiveGateway(root / "models", root / "state", settings=settings) as live:
        yield live


def post(gateway: LiveGateway, content: bytes, **headers: str) -> httpx.Response:
    return gateway.data.post("/v1/feedback", content=content, headers=headers)


def test_a_label_of_a_real_prediction_and_a_bulk_are_kept(gateway: LiveGateway) -> None:
    identity = gateway.data.post("/predict/iris", json=ROW).headers["x-prediction-id"]
    reply = gateway.data.post("/v1/feedback", json={"prediction_id": identity, "label": 2, "source": "clinic"})
    assert (reply.status_code, reply.json()) == (200, {"accepted": 1, "rejected": 0})
    lines = b"".join(Label(f"line-{index}", {"label": index}, 0).to_line() for index in range(3))
    lines = b"\n".join(
        json.dumps({"prediction_id": each["prediction_id"], "label": each["label"]}).encode()
        for each in map(json.loads, lines.splitlines())
    )
    assert post(gateway, lines).json() == {"accepted": 3, "rejected": 0}
    found = {label.prediction_id: label for label in kept(gateway.state)}
    assert (found[identity].label, found[identity].source) == (2, "clinic")
    assert found["line-2"].label == {"label": 2}


def test_what_is_wrong_is_named_and_what_is_right_is_kept(gateway: LiveGateway) -> None:
    items: list[Any] = [{"prediction_id": f"bulk-{index}", "label": index} for index in range(4)]
    items[1] = {"prediction_id": "bulk-1", "label": None}
    items[3] = 7
    reply = gateway.data.post("/v1/feedback", json=items)
    assert reply.status_code == 400
    told = reply.json()
    assert (told["accepted"], told["rejected"]) == (2, 2)
    assert [(each["item"], each["field"]) for each in told["errors"]] == [(1, "items[1].label"), (3, "items[3]")]
    assert told["error"]["field"] == "items[1].label"
    assert {label.prediction_id for label in kept(gateway.state)} >= {"bulk-0", "bulk-2"}
    single = gateway.data.post("/v1/feedback", json={"prediction_id": "p", "label": 1, "rows": 2})
    assert single.status_code == 400
    assert (single.json()["error"]["code"], single.json()["error"]["field"]) == ("invalid_input", "rows")


def test_the_command_of_the_documentation_is_taken(gateway: LiveGateway) -> None:
    found = re.search(r"<!-- run: feedback -->\n```console\n(.*?)```", OPERATE, re.DOTALL)
    assert found
    command = found[1].replace("localhost:8080", gateway.data_url.removeprefix("http://"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"accepted": 1, "rejected": 0}


@pytest.mark.parametrize(("coding", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_labels_may_come_compressed(gateway: LiveGateway, coding: str, packed: Callable[[bytes], bytes]) -> None:
    lines = b"\n".join(b'{"prediction_id": "%b-%d", "label": 1}' % (coding.encode(), index) for index in range(200))
    assert len(packed(lines)) < 10_000 > len(lines)
    reply = post(gateway, packed(lines), **{"content-encoding": coding})
    assert (reply.status_code, reply.json()) == (200, {"accepted": 200, "rejected": 0})
    assert f"{coding}-199" in {label.prediction_id for label in kept(gateway.state)}
    torn = post(gateway, packed(lines)[:-9], **{"content-encoding": coding})
    assert (torn.status_code, torn.json()["error"]["field"]) == (400, "body")
    bomb = post(gateway, packed(b" " * 10_001), **{"content-encoding": coding})
    assert (bomb.status_code, "once inflated" in bomb.json()["error"]["message"]) == (413, True)


def test_bodies_and_methods_that_are_not_taken(gateway: LiveGateway) -> None:
    assert post(gateway, b"x" * 10_001).status_code == 413
    assert post(gateway, b"").status_code == 400
    unknown = post(gateway, b"{", **{"content-encoding": "br"})
    assert (unknown.status_code, unknown.headers["accept-encoding"]) == (415, "gzip, deflate")
    reply = gateway.data.get("/v1/feedback")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "sluicegate_labels_total" in gateway.control.get("/metrics").text


def test_kill_9_loses_no_label_that_was_acknowledged(models: Path, state: Path) -> None:
    write_package(models, IRIS)
    with LiveGateway(models, state, settings={"supervisor": {"backoff_min_s": 0.05}}) as gateway:
        acknowledged: list[str] = []
        stopped = threading.Event()

        def send(sender: int) -> None:
            for number in range(10**6):
                if stopped.is_set():
                    return
                name = f"{sender}-{number}"
                try:
                    reply = httpx.post(f"{gateway.data_url}/v1/feedback", json={"prediction_id": name, "label": 1})
                except httpx.HTTPError:
                    continue  # its worker was killed; nobody said yes
                if reply.status_code == 200:
                    acknowledged.append(name)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for sender in senders:
            sender.start()
        try:
            for _kill in range(3):
                before = len(acknowledged)
                eventually(lambda before=before: len(acknowledged) > before + 20, "labels are taken")  # type: ignore[misc]
                gateway.kill("worker")
        finally:
            stopped.set()
            for sender in senders:
                sender.join()
        found = {label.prediction_id for label in kept(state)}
        assert set(acknowledged) <= found
        print(f"{len(acknowledged)} acknowledged, {len(found)} in the log")
