"""Notifications of a whole gateway: metrics, and a control that is killed while a receiver is down."""

from __future__ import annotations

from pathlib import Path

from tests import builders
from tests.control.process import RECEIVERS
from tests.end_to_end.flags import wait_warm
from tests.live import LiveGateway, eventually
from tests.receiver import Receiver, free_port


def test_a_kill_switch_pulled_while_all_is_down_is_told_later(models: Path, state: Path) -> None:
    builders.write_package(models, builders.classifier("iris", "1"))
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with LiveGateway(models, state, settings={"control": {"name": "prod-7"}, **RECEIVERS}) as gateway:
        wait_warm(gateway, "iris", "1")
        made = gateway.control.post("/admin/v1/webhooks", json={"url": url, "events": ["flag.*"]}).json()
        headers = {"if-match": "*", "x-change-reason": "errors"}
        gateway.control.patch("/admin/v1/flags/iris.route", json={"state": "DISABLED"}, headers=headers)
        eventually(lambda: 'sluicegate_webhook_deliveries_total{outcome="unreachable"}' in page(gateway), "a failure")
        eventually(lambda: sample(page(gateway), "sluicegate_webhook_lag_rows") >= 1, "it lags")
        gateway.kill("control")
        with Receiver(port=port) as receiver:
            eventually(lambda: receiver.taken, "it is told")
            (arrival,) = receiver.taken
            arrival.check(made["secret"])
            assert arrival.event["source"] == "/sluicegate/prod-7"
            assert arrival.event["subject"] == "iris"
            assert arrival.event["data"]["after"]["state"] == "DISABLED"
            eventually(lambda: sample(page(gateway), "sluicegate_webhook_lag_rows") == 0, "it lags no more")
            assert sample(page(gateway), 'sluicegate_webhook_deliveries_total{outcome="delivered"}') == 1
        assert made["secret"] not in gateway.log


def page(gateway: LiveGateway) -> str:
    return gateway.control.get("/metrics").text


def sample(page: str, name: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])
