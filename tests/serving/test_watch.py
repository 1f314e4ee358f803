"""A worker that follows flags which no control of ours has written."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from gateway.flags import store as writes
from gateway.flags.audit import Author
from gateway.flags.document import FlagDocument, parse_flag
from gateway.flags.sqlite import SqliteStore
from tests.builders import classifier, write_package
from tests.end_to_end.flags import wait_adopted, workers_status
from tests.live import LiveGateway, eventually


def test_flags_of_one_model_that_cannot_be_read_keep_no_other_from_being_followed(models: Path, state: Path) -> None:
    for model in ("iris", "wine"):
        write_package(models, classifier(model, "1"))
    state.mkdir()
    store = SqliteStore(state / "flags.sqlite")

    def put(key: str, variant: Any, **plain: Any) -> int:
        flag = parse_flag(key, {"state": "ENABLED", "variants": {"a": variant}, "defaultVariant": "a", **plain})
        author = Author("elsewhere")
        return writes.put(store, key, flag, expected_revision=None, author=author, verb="put", reason="a test").revision

    put("iris.route", "1")
    put("wine.route", "1")
    with LiveGateway(models, state, role="serving") as gateway:

        def iris() -> dict[str, Any]:
            found: dict[str, Any] = workers_status(gateway)[0]["models"]["iris"]
            return found

        pid = gateway.child_pids("worker")[0]
        waiting = put("iris.route", "2")
        eventually(lambda: iris()["pending_revision"] == waiting, "the route to 2 waits")
        put("iris.cache", {"enabled": "yes"})
        eventually(lambda: iris()["refused"], "the flags of iris are refused")
        write_package(models, classifier("iris", "2"))
        put("other.route", "1")
        wait_adopted(gateway, "wine", put("wine.route", "1", state="DISABLED"))
        eventually(lambda: iris()["versions"].get("2", {"state": "gone"})["state"] in ("warm", "gone"), "2 is settled")
        wait_adopted(gateway, "wine", put("wine.route", "1", metadata={"again": True}))
        put("iris.cache", {"enabled": True})
        wait_adopted(gateway, "iris", put("iris.route", "2", metadata={"again": True}))
        assert gateway.child_pids("worker")[0] == pid
        assert "Traceback" not in gateway.log
    store.close()


def test_a_purge_waits_for_no_version_that_still_loads(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    state.mkdir()
    store = SqliteStore(state / "flags.sqlite")

    def put(key: str, variant: Any, **plain: Any) -> int:
        flag = parse_flag(key, {"state": "ENABLED", "variants": {"a": variant}, "defaultVariant": "a", **plain})
        author = Author("elsewhere")
        return writes.put(store, key, flag, expected_revision=None, author=author, verb="put", reason="a test").revision

    put("iris.route", "1")
    with LiveGateway(models, state, role="serving") as gateway:
        body = b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'

        def cache() -> str:
            reply = gateway.data.post("/v2/models/iris/infer", content=body)
            assert reply.status_code == 200
            return reply.headers["x-cache"]

        waiting = put("iris.route", "2")
        eventually(lambda: workers_status(gateway)[0]["models"]["iris"]["pending_revision"] == waiting, "2 is awaited")
        assert [cache(), cache()] == ["miss", "hit"]
        revision = put("iris.cache", {"enabled": True}, metadata={"purged.1": 7})
        eventually(lambda: workers_status(gateway)[0]["revision"] == revision, "the purge is followed")
        assert [cache(), cache()] == ["miss", "hit"]
        assert workers_status(gateway)[0]["models"]["iris"]["pending_revision"] == waiting
    store.close()


def test_a_store_that_went_back_is_followed_even_where_it_gives_out_a_revision_twice(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    write_package(models, classifier("iris", "2"))
    state.mkdir()

    def document(revision: int, default: str, route_revision: int) -> FlagDocument:
        plain = {"state": "ENABLED", "variants": {"a": "1", "b": "2"}, "defaultVariant": default}
        flag = dataclasses.replace(parse_flag("iris.route", plain), revision=route_revision)
        return FlagDocument(revision, {"iris.route": flag})

    with contextlib.closing(SqliteStore(state / "flags.sqlite")) as store:
        store.mirror(document(7, "a", 7))
        with LiveGateway(models, state, role="serving") as gateway:
            row = {"rows": [dict.fromkeys(classifier().features, 0.5)]}

            def serves(variant: str) -> bool:
                return gateway.data.post("/predict/iris", json=row).headers["x-model-variant"] == variant

            eventually(lambda: serves("a"), "the first route")
            store.mirror(document(7, "b", 7))
            eventually(lambda: serves("b"), "the same revision with another meaning")
            store.mirror(document(6, "a", 5))
            eventually(lambda: serves("a"), "an older one")
            store.mirror(document(8, "b", 8))
            eventually(lambda: serves("b"), "and on from there")
