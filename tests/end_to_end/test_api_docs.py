"""The OpenAPI document and the docs page of a real gateway: examples that work, and a page shown by a real browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab, browser
from tests.builders import classifier, write_mixed_package, write_package
from tests.end_to_end.flags import declare
from tests.live import LiveGateway, eventually

IRIS = classifier()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("docs")
    write_package(root / "models", IRIS, golden=True)
    write_mixed_package(root / "models")
    with LiveGateway(root / "models", root / "state") as live:
        yield live


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def examples(document: Any) -> Iterator[tuple[str, str, str, Any]]:
    """Method, path, content type and body of each example, with the first value of each part of the path."""
    for pattern, operations in document["paths"].items():
        for method, operation in operations.items():
            path = pattern
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["enum"][0])
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for example in content.get("examples", {}).values():
                    yield method.upper(), path, kind, example["value"]


def test_every_example_gets_its_answer(gateway: LiveGateway) -> None:
    asked = list(examples(gateway.data.get("/openapi.json").json()))
    paths = {(path, kind.partition("/")[2]) for _, path, kind, _ in asked}
    assert {("/predict/iris", "json"), ("/v2/models/iris/versions/1/infer", "json")} <= paths
    assert {("/v1/models/iris/labels/stable:classify", "json"), ("/predictions/iris/1", "json")} <= paths
    assert {("/models/iris/invocations", "json"), ("/models/iris/invocations", "csv")} <= paths
    for method, path, kind, body in asked:
        content = body if kind == "text/csv" else json.dumps(body)
        reply = gateway.data.request(method, path, content=content, headers={"content-type": kind})
        assert reply.status_code == 200, (path, reply.text)


def test_every_question_of_the_document_gets_its_answer(gateway: LiveGateway) -> None:
    document = gateway.data.get("/openapi.json").json()
    asked = {}
    for pattern, operations in document["paths"].items():
        if "get" in operations:
            parts = {each["name"]: each["schema"]["enum"][0] for each in operations["get"].get("parameters", ())
                     if each["in"] == "path"}  # fmt: skip
            asked[pattern] = pattern.format_map(parts)
    assert {
        "/v2/models/{model}/versions/{version}/config",
        "/v2/models/stats",
        "/models/{model}/{version}",
    } <= asked.keys()
    for pattern, path in asked.items():
        reply = gateway.data.get(path)
        (kind,) = document["paths"][pattern]["get"]["responses"]["200"]["content"]
        assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (200, kind), path
    assert {each["name"] for each in gateway.data.post("/v2/repository/index").json()} == {"iris", "paint"}


def test_the_document_is_sent_once_and_made_anew_when_another_version_answers(gateway: LiveGateway) -> None:
    first = gateway.data.get("/openapi.json")
    tag = first.headers["etag"]
    again = gateway.data.get("/openapi.json", headers={"if-none-match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    write_package(gateway.models, classifier(version="2"), golden=True)
    declare(gateway, "iris", "canary", "2")

    def names_both() -> bool:
        reply = gateway.data.get("/openapi.json", headers={"if-none-match": tag})
        if reply.status_code == 304:
            return False
        operation = reply.json()["paths"]["/v1/models/iris/labels/{label}:predict"]["post"]
        return {"stable", "canary"} == set(operation["parameters"][0]["schema"]["enum"])

    eventually(names_both, "the document tells of the canary")


def test_the_page_shows_every_model_and_asks_nobody_else(gateway: LiveGateway, tab: Tab) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(f"{gateway.data_url}/docs", width=1280)
    eventually(lambda: tab.evaluate("document.querySelectorAll('.opblock').length") > 20, "the operations are shown")
    assert tab.complaints == []
    elsewhere = [each for each in tab.requests if not each.startswith((gateway.data_url, "data:"))]
    assert elsewhere == []
    words = tab.evaluate("document.body.innerText")
    assert "/predict/iris" in words
    assert "/predict/paint" in words
    if folder := os.environ.get("SCREENSHOTS"):
        tab.screenshot(Path(folder) / "docs.png")


def try_out(tab: Tab, path: str) -> Any:
    """Open an operation, send its example as it stands there, and return the status and the body that are shown."""
    find = f"""[...document.querySelectorAll('.opblock-post')].find(one =>
        one.querySelector('.opblock-summary-path').dataset.path === '{path}')"""
    tab.evaluate(f"void {find}.querySelector('.opblock-summary-control').click()")
    eventually(lambda: tab.evaluate(f"!!{find}.querySelector('.execute')"), "the operation is open")
    tab.evaluate(f"void {find}.querySelector('.execute').click()")
    row = f"{find}.querySelector('.live-responses-table .response')"
    eventually(lambda: tab.evaluate(f"!!{row}"), "there is an answer")
    status = tab.evaluate(f"{row}.querySelector('.response-col_status').innerText.trim()")
    return status, tab.evaluate(f"{row}.querySelector('.highlight-code code').innerText")


def test_a_click_on_try_it_gets_a_prediction(gateway: LiveGateway, tab: Tab) -> None:
    tab.open(f"{gateway.data_url}/docs", width=1280)
    eventually(lambda: tab.evaluate("document.querySelectorAll('.opblock').length") > 20, "the operations are shown")
    tab.complaints.clear()
    status, body = try_out(tab, "/predict/iris")
    assert status.startswith("200")
    assert json.loads(body)["predictions"][0]["label"] in (0, 1, 2)
    assert tab.complaints == []
    if folder := os.environ.get("SCREENSHOTS"):
        tab.screenshot(Path(folder) / "docs-tried.png")


def test_with_api_keys_the_document_is_for_the_models_of_the_key_and_the_page_asks_for_one(
    tmp_path: Path, tab: Tab
) -> None:
    for model in (IRIS, classifier("churn")):
        write_package(tmp_path / "models", model, golden=True)
    settings = {"server": {"api_keys": "required"}}
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as live:
        made = live.control.post("/admin/v1/keys", json={"name": "one", "models": ["iris"]}).json()
        key = {"x-api-key": made["key"]}
        eventually(lambda: live.data.get("/openapi.json", headers=key).status_code == 200, "the key is known")
        document = live.data.get("/openapi.json", headers=key).json()
        assert "/predict/iris" in document["paths"]
        assert "churn" not in json.dumps(document)
        assert document["security"] == [{"key": []}, {"bearer": []}]
        for path in ("/openapi.json", "/docs"):
            refused = live.data.get(path)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/json")
        assert live.data.get("/docs", headers=key).text.startswith("<!DOCTYPE html>")

        tab.open(f"{live.data_url}/docs", width=1280)
        assert tab.evaluate("document.getElementById('ask').checkVisibility()")
        tab.complaints.clear()
        tab.evaluate(f"void (document.getElementById('key').value = '{made['key']}')")
        tab.evaluate("document.getElementById('ask').requestSubmit()")
        eventually(
            lambda: tab.evaluate("document.querySelectorAll('.opblock').length") > 10, "the operations are shown"
        )
        assert not tab.evaluate("document.getElementById('ask').checkVisibility()")
        assert try_out(tab, "/predict/iris")[0].startswith("200")
        assert tab.complaints == []


def test_a_key_that_is_not_good_is_told_on_the_page(tmp_path: Path, tab: Tab) -> None:
    write_package(tmp_path / "models", IRIS)
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings={"server": {"api_keys": "required"}}) as live:
        tab.open(f"{live.data_url}/docs", width=800)
        tab.evaluate("void (document.getElementById('key').value = 'nonsense')")
        tab.evaluate("document.getElementById('ask').requestSubmit()")
        told = "document.getElementById('told').textContent"
        eventually(lambda: tab.evaluate(told).startswith("401: "), "the page tells what was wrong")
        assert tab.evaluate("document.getElementById('ask').checkVisibility()")


def test_files_of_the_page_are_those_and_no_others(gateway: LiveGateway) -> None:
    for name in ("docs.js", "docs.css", "swagger-ui.css", "swagger-ui-bundle.js"):
        reply = gateway.data.get(f"/docs/{name}")
        assert (reply.status_code, reply.headers["x-content-type-options"]) == (200, "nosniff")
    for name in ("docs.html", "..%2Fdocs.py", "%2e%2e", "LICENSE", "nope"):
        reply = gateway.data.get(f"/docs/{name}")
        assert (reply.status_code, list(reply.json())) == (404, ["error"]), name
    assert "unsafe" not in gateway.data.get("/docs").headers["content-security-policy"]


def test_without_the_optional_package_the_page_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # Found before the real one: a module of that name, which has no files beside it.
    (hidden / "flask_swagger_ui.py").write_text("")
    write_package(tmp_path / "models", IRIS)
    environment = {"PYTHONPATH": os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])}
    with LiveGateway(tmp_path / "models", tmp_path / "state", environment=environment) as live:
        reply = live.data.get("/docs")
        assert reply.status_code == 404
        assert "pip install 'sluicegate[docs]'" in reply.json()["error"]
        assert live.data.get("/openapi.json").status_code == 200
