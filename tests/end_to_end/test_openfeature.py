"""An application with the OpenFeature SDK asks the gateway, flagd's evaluator, and the model: all say the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, must_change, wait_adopted
from tests.live import LiveGateway

RULE = {
    "if": [
        {"==": [{"var": "headers.x-tier"}, "gold"]},
        "canary",
        {"starts_with": [{"var": "targetingKey"}, "internal-"]},
        {"fractional": [{"cat": ["salt", {"var": "targetingKey"}]}, ["canary", 1], ["stable", 1]]},
        {"fractional": [["canary", 30], ["stable", 70]]},
    ]
}
BODY = b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("openfeature")
    write_package(root / "models", classifier("iris", "1"))
    with LiveGateway(root / "models", root / "state") as live:
        write_package(root / "models", classifier("iris", "2"))
        declare(live, "iris", "canary", "2")
        wait_adopted(live, "iris", must_change(live, "iris.route", {"targeting": RULE}))
        options = {"state": "ENABLED", "variants": {"all": 1, "none": 0}, "defaultVariant": "all"}
        headers = {"if-none-match": "*", "x-change-reason": "test"}
        assert live.control.put("/admin/v1/flags/iris.sampling", json=options, headers=headers).status_code == 201
        yield live


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[OpenFeatureClient]:
    """The SDK as an application sets it up."""
    headers = {"Authorization": f"Bearer {gateway.admin_token}"}
    provider = OFREPProvider(gateway.control_url, headers_factory=lambda: headers)
    api.set_provider(provider)
    yield api.get_client()
    provider.session.close()
    api.clear_providers()


def contexts() -> Iterator[tuple[str, dict[str, str]]]:
    for i in range(60):
        yield f"user-{i}", {}
        yield f"internal-{i}", {}
    for i in range(5):
        yield f"user-{i}", {"x-tier": "gold"}
        yield f"user-{i}", {"x-tier": "silver"}
    yield "ü", {}


def test_the_sdk_flagd_and_the_served_model_agree_on_every_request(
    gateway: LiveGateway, client: OpenFeatureClient
) -> None:
    core = FlagdCore()
    core.set_flags(gateway.control.get("/admin/v1/flags").json())
    versions = set()
    for key, headers in contexts():
        attributes: dict[str, Any] = {"model": "iris", "protocol": "oip", "headers": headers}
        asked = EvaluationContext(key, attributes)
        told = client.get_string_details("iris.route", "none", asked)
        assert told.error_code is None, told
        flagd = core.resolve_string_value("iris.route", "none", asked)
        assert (told.value, told.variant) == (flagd.value, flagd.variant)
        sent = [(b"x-targeting-key", key.encode()), *((n.encode(), value.encode()) for n, value in headers.items())]
        served = gateway.data.post("/v2/models/iris/infer", content=BODY, headers=sent)
        assert told.value == served.headers["x-model-version"]
        assert told.variant == served.headers["x-model-variant"]
        assert told.flag_metadata["revision"] == int(served.headers["x-flag-revision"])
        assert told.reason == (Reason.TARGETING_MATCH if headers.get("x-tier") == "gold" else Reason.SPLIT)
        versions.add(told.value)
    assert versions == {"1", "2"}


def test_the_sdk_reads_options_as_numbers_and_falls_back_where_a_flag_is_missing(client: OpenFeatureClient) -> None:
    someone = EvaluationContext("u")
    assert client.get_float_value("iris.sampling", 0.25, someone) == 1.0
    gone = client.get_string_details("gone.route", "fallback", someone)
    assert (gone.value, gone.error_code) == ("fallback", ErrorCode.FLAG_NOT_FOUND)
    assert client.get_boolean_details("iris.route", True, someone).error_code == ErrorCode.TYPE_MISMATCH


def test_the_kill_switch_reaches_the_applications(gateway: LiveGateway, client: OpenFeatureClient) -> None:
    gold = EvaluationContext("u", {"headers": {"x-tier": "gold"}})
    assert client.get_string_value("iris.route", "none", gold) == "2"
    must_change(gateway, "iris.route", {"state": "DISABLED"})
    killed = client.get_string_details("iris.route", "none", gold)
    assert (killed.value, killed.variant, killed.reason) == ("1", "stable", Reason.DISABLED)
    must_change(gateway, "iris.route", {"state": "ENABLED"})
    assert client.get_string_value("iris.route", "none", gold) == "2"


def test_a_wrong_token_gives_the_caller_his_default(gateway: LiveGateway) -> None:
    provider = OFREPProvider(gateway.control_url, headers_factory=lambda: {"X-API-Key": "wrong"})
    api.set_provider(provider)
    found = api.get_client().get_string_details("iris.route", "mine", EvaluationContext("u"))
    assert (found.value, found.error_code) == ("mine", ErrorCode.GENERAL)
    provider.session.close()
    api.clear_providers()
