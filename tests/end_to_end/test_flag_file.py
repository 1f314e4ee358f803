"""A release by file alone: a new version is loaded, warmed, given its share; a kill by hand outlives the next file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.builders import classifier, write_package
from tests.end_to_end.flags import must_change, split, wait_warm
from tests.live import LiveGateway, eventually

BODY = b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'


def write(path: Path, targeting: Any = None, **variants: str) -> None:
    plain = {"state": "ENABLED", "variants": variants, "defaultVariant": "stable", "targeting": targeting or {}}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"flags": {"iris.route": plain}}))
    draft.replace(path)


def test_a_version_is_released_and_killed_while_the_flags_follow_a_file(models: Path, state: Path) -> None:
    file = models.parent / "flags.json"
    write_package(models, classifier("iris", "1"))
    write(file, stable="1")
    with LiveGateway(models, state, workers=2, settings={"flags": {"import_file": str(file)}}) as gateway:

        def version() -> str:
            reply = gateway.data.post("/v2/models/iris/infer", content=BODY, headers={"x-targeting-key": "u"})
            assert reply.status_code == 200, reply.text  # at no time is a request lost
            return reply.headers["x-model-version"]

        def told() -> dict[str, Any]:
            found: dict[str, Any] = gateway.control.get("/admin/v1/status").json()["import"]
            return found

        assert version() == "1"
        write(file, split(100), stable="1", canary="2")  # before its package is there
        eventually(lambda: told()["state"] == "waiting", "the weight waits")
        assert version() == "1"
        write_package(models, classifier("iris", "2"))
        wait_warm(gateway, "iris", "2")
        eventually(lambda: version() == "2", "the weight has risen by itself")
        eventually(lambda: told()["state"] == "applied", "it is told")

        must_change(gateway, "iris.route", {"state": "DISABLED"})
        eventually(lambda: version() == "1", "the kill switch works as ever")
        write(file, split(90), stable="1", canary="2")
        sha256 = told()["sha256"]
        eventually(lambda: told()["state"] == "applied" and told()["sha256"] != sha256, "the next file is applied")
        assert version() == "1"
        must_change(gateway, "iris.route", {"state": "ENABLED"})
        eventually(lambda: gateway.control.get("/admin/v1/status").json()["import"]["state"] == "applied", "settled")
        flag = gateway.control.get("/admin/v1/flags/iris.route").json()
        assert (flag["state"], flag["targeting"]) == ("ENABLED", split(90))
