"""The ring of API keys with the clocks by hand: quota, expiry, what is remembered, and what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from gateway.errors import GatewayError, KeyOutOfScope, KeysUnavailable, KeyUnknown, QuotaExceeded, StoreUnavailable
from gateway.flags.keys import ApiKey, digest_of, draft, read_key
from gateway.flags.store import KEYS, Record
from gateway.metrics import ServingMetrics, process_registry
from gateway.serving.app import build
from gateway.serving.keyring import KeyRing
from gateway.serving.priority import CRITICAL, NORMAL, SHEDDABLE
from gateway.settings import PathSettings, ServerSettings, Settings
from tests.puppet import FakeClock

OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}


def made(
    *,
    models: tuple[str, ...] | None = None,
    rate_per_s: float | None = None,
    burst: int | None = None,
    expires_s: float | None = None,
    priority: str = "normal",
) -> tuple[ApiKey, str]:
    key_id, secret = draft()
    return ApiKey(key_id, "a test", digest_of(secret), models, rate_per_s, burst, 0.0, expires_s, priority), secret


class Ring:
    """A ring with one clock for everything."""

    def __init__(self, *keys: ApiKey) -> None:
        self.clock = FakeClock()
        self.ring = KeyRing(clock=self.clock, wall_clock=self.clock)
        self.ring.take(keys)

    def ask(self, secret: str, model: str | None = "iris") -> str:
        key = self.ring.identify({"authorization": f"Bearer {secret}"}, model)
        self.ring.charge(key)
        return key.id


def test_a_quota_refills_with_time_up_to_its_burst_and_says_when_to_come_back() -> None:
    key, secret = made(rate_per_s=0.5, burst=2)
    ring = Ring(key)
    for _ in range(2):
        assert ring.ask(secret) == key.id
    with pytest.raises(QuotaExceeded) as refused:
        ring.ask(secret)
    assert refused.value.retry_after_s == 2
    ring.clock.advance(1.5)
    with pytest.raises(QuotaExceeded) as refused:
        ring.ask(secret)
    assert refused.value.retry_after_s == 1, "what was refused was not charged"
    ring.clock.advance(0.5)
    ring.ask(secret)
    ring.clock.advance(3600)
    for _ in range(2):
        ring.ask(secret)
    with pytest.raises(QuotaExceeded):
        ring.ask(secret)


def test_a_change_of_other_keys_gives_nobody_a_new_quota() -> None:
    key, secret = made(rate_per_s=0.001, burst=1)
    ring = Ring(key)
    ring.ask(secret)
    ring.ring.take([key, made()[0]])
    with pytest.raises(QuotaExceeded):
        ring.ask(secret)


def test_a_key_ends_at_its_time_though_it_is_remembered() -> None:
    key, secret = made(expires_s=FakeClock()() + 10)
    ring = Ring(key)
    ring.ask(secret)
    ring.clock.advance(10)
    with pytest.raises(KeyUnknown, match="expired"):
        ring.ask(secret)


def test_a_key_that_was_taken_away_is_forgotten_though_it_was_remembered() -> None:
    key, secret = made()
    ring = Ring(key)
    ring.ask(secret)
    ring.ring.take([])
    with pytest.raises(KeyUnknown):
        ring.ask(secret)


def test_a_value_counts_only_for_the_header_that_it_was_verified_in() -> None:
    key, secret = made()
    ring = Ring(key).ring
    ring.identify({"authorization": f"Bearer {secret}"}, None)
    ring.identify({"x-api-key": secret}, None)
    for headers in (
        {"x-api-key": f"Bearer {secret}"},
        {"authorization": secret},
        {"authorization": f"Basic {secret}"},
        {"authorization": "Bearer"},
        {"x-api-key": "", "authorization": f"Bearer {secret}"},
        {"x-api-key": key.digest},
        {"x-api-key": key.id},
        {},
    ):
        with pytest.raises(KeyUnknown):
            ring.identify(headers, None)


def test_a_key_for_some_models_is_good_for_no_other() -> None:
    key, secret = made(models=("iris", "churn"))
    ring = Ring(key)
    ring.ask(secret, "churn")
    ring.ask(secret, None)
    with pytest.raises(KeyOutOfScope):
        ring.ask(secret, "fraud")


def test_a_claim_is_worth_no_more_than_the_key_that_makes_it() -> None:
    metrics = ServingMetrics(process_registry())
    usual, usual_secret = made()
    critical, critical_secret = made(priority="critical", expires_s=FakeClock()() + 10)
    ring = Ring(usual, critical)

    def granted(secret: str) -> list[int]:
        headers = {"authorization": f"Bearer {secret}"}
        return [ring.ring.granted(headers, claimed) for claimed in (CRITICAL, NORMAL, SHEDDABLE)]

    assert granted(usual_secret) == [NORMAL, NORMAL, SHEDDABLE]
    assert granted(critical_secret) == [CRITICAL, NORMAL, SHEDDABLE]
    ring.ring.take([usual, critical])
    ring.ring.flush(metrics)
    counted = {s.labels["key"]: s.value for family in metrics.lowered_priorities.collect() for s in family.samples
               if s.name.endswith("_total")}  # fmt: skip
    assert counted == {usual.id: 1}, "once, and over a change of the keys"
    ring.clock.advance(10)
    assert granted(critical_secret) == [NORMAL, NORMAL, SHEDDABLE], "it has ended while the body was still coming"


def test_a_key_that_was_stored_before_keys_had_priorities_has_the_usual_one() -> None:
    key, _ = made(priority="critical")
    body = key.to_body()
    assert read_key(Record(KEYS, key.id, 1, body)) == key
    del body["priority"]
    assert made(priority="normal")[0].to_body().keys() == body.keys(), "gateways that do not know the field can read it"
    assert read_key(Record(KEYS, key.id, 1, body)).priority == "normal"
    with pytest.raises(StoreUnavailable, match="no key that this gateway wrote"):
        read_key(Record(KEYS, key.id, 1, {**body, "priority": "urgent"}))


def test_more_ids_than_the_metrics_shall_bear_share_a_label() -> None:
    metrics = ServingMetrics(process_registry())
    keys = [made() for _ in range(1100)]
    ring = Ring(*(key for key, _ in keys))
    for _, secret in keys:
        ring.ask(secret)
    ring.ring.flush(metrics)
    samples = [s for family in metrics.api_key_requests.collect() for s in family.samples if s.name.endswith("_total")]
    assert len(samples) == 1001
    assert sum(sample.value for sample in samples) == 1100
    assert max(sample.value for sample in samples if sample.labels["key"] == "other") == 100


def test_every_path_but_those_of_probes_asks_for_a_key_and_nobody_enters_while_keys_are_unknown(tmp_path: Path) -> None:
    settings = Settings(
        server=ServerSettings(api_keys="required"), paths=PathSettings(models=tmp_path, state=tmp_path / "state")
    )

    async def ask_all() -> None:
        worker = build(settings, boot="b", report=lambda _: None)
        transport = httpx.ASGITransport(worker.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def statuses() -> set[int]:
                found = set()
                for route in worker.app.routes:
                    assert isinstance(route, Route)
                    path = route.path.replace("{model}", "x").replace("{version}", "1")
                    method = min(route.methods or {"POST"})  # of GET and HEAD the former
                    reply = await client.request(method, path)
                    if route.path in OPEN:
                        assert reply.status_code in (200, 503)
                        assert "error" not in reply.json()
                    elif route.path == "/docs/{asset}":  # what the page asks with for a key; there is none of that name
                        assert reply.status_code == 404
                    else:
                        found.add(reply.status_code)
                        needs = "www-authenticate" if reply.status_code == 401 else "retry-after"
                        assert needs in reply.headers, path
                return found

            assert await statuses() == {503}
            assert worker.ring is not None
            worker.ring.take([])
            assert await statuses() == {401}
        worker.registry.close()

    asyncio.run(ask_all())


def test_what_is_refused_for_other_reasons_is_not_counted_as_a_matter_of_keys() -> None:
    metrics = ServingMetrics(process_registry())
    ring = Ring().ring

    def counted() -> float:
        return sum(
            sample.value
            for family in metrics.api_key_requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["key"] == ""
        )

    before = counted()
    ring.refused(GatewayError("something else"))
    ring.refused(KeyUnknown("no key"))
    ring.refused(KeysUnavailable("not read"))
    ring.flush(metrics)
    assert counted() == before + 2
