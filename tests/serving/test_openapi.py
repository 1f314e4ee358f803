"""The OpenAPI document as plain data: what each model and path adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuzzing.targets import targets

from gateway.codecs.schema_parts import Described
from gateway.serving.openapi import ModelView, PathView, VersionView, document
from gateway.serving.protocols import prediction_paths
from tests.builders import classifier, regressor

PATHS = [PathView(path.pattern, path.codec.name, path.methods) for path in prediction_paths()]


def model(name: str, *versions: tuple[str, Described], labels: tuple[str, ...] = ()) -> ModelView:
    return ModelView(name, tuple(VersionView(*version) for version in versions), labels)


def made(*models: ModelView, default: str = "", keys: bool = False) -> Any:
    return document(models, PATHS, gateway_version="1.2.3", default_model=default, asks_for_keys=keys)


IRIS = Described(classifier().signature)
HOUSE = Described(regressor().signature)


def test_a_model_has_the_paths_that_it_can_be_asked_by() -> None:
    paths = made(model("iris", ("1", IRIS)), model("house", ("1", HOUSE)))["paths"]
    assert {"/predict/iris", "/v1/models/iris:classify", "/v1/models/house:regress"} <= paths.keys()
    assert not {"/v1/models/iris:regress", "/v1/models/house:classify", "/invocations"} & paths.keys()
    assert "{model}" not in "".join(path for path in paths if path.startswith(("/predict", "/predictions")))
    assert set(paths["/predictions/iris"]) == {"post", "put"}


# Paths that ask nothing that anybody gets an answer to, and the page that shows the document.
LEFT_OUT = ("/docs", ":explain", "/explanations/", "/load", "/unload", "{rest:path}")


def test_every_path_that_is_answered_is_told(tmp_path: Path) -> None:
    iris = model("iris", ("1", IRIS), labels=("stable",))
    house = model("house", ("1", HOUSE))
    told = made(iris, house, default="iris")["paths"]
    found = {path.replace("/iris", "/{model}").replace("/house", "/{model}") for path in told}
    asked = {each.path for each in targets(tmp_path) if each.port == "data" and each.path != "/v2/"}
    left = {path for path in asked if any(part in path for part in LEFT_OUT)}
    assert len(left) == 10
    assert asked - left == found


def test_the_path_without_a_model_is_that_of_the_default_one() -> None:
    told = made(model("iris", ("1", IRIS)), model("house", ("1", HOUSE)), default="house")
    schema = told["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/house.mlflow.1.request"}


def test_versions_that_are_asked_alike_share_a_schema_and_others_are_alternatives() -> None:
    def bodies(*versions: tuple[str, Described]) -> Any:
        told = made(model("m", *versions, labels=("stable", "canary")))
        path = told["paths"]["/v1/models/m/labels/{label}:predict"]["post"]
        assert path["parameters"][0]["schema"] == {"enum": ["stable", "canary"]}
        return path["requestBody"]["content"]["application/json"]["schema"]

    assert bodies(("1", IRIS), ("2", IRIS)) == {"$ref": "#/components/schemas/m.tfs.1.request"}
    names = [each["$ref"].rpartition("/")[2] for each in bodies(("1", IRIS), ("2", HOUSE))["anyOf"]]
    assert names == ["m.tfs.1.request", "m.tfs.2.request"]


def test_every_reference_leads_somewhere_and_every_operation_has_its_own_id() -> None:
    told = made(model("iris", ("1", IRIS)), model("iris-2", ("1", HOUSE)), default="iris", keys=True)
    ids = [operation["operationId"] for path in told["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)

    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [found for each in value for found in references(each)]
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + references(list(value.values()))
        return []

    for reference in set(references(told)):
        found = told
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_what_an_api_key_may_bring_is_told_only_where_one_is_asked_for() -> None:
    view = model("iris", ("1", IRIS))
    without, with_keys = made(view), made(view, keys=True)
    assert "security" not in without
    assert "401" not in without["paths"]["/predict/iris"]["post"]["responses"]
    assert {"401", "403", "429"} <= with_keys["paths"]["/predict/iris"]["post"]["responses"].keys()
    assert with_keys["paths"]["/livez"]["get"]["security"] == []
    assert {"key", "bearer"} == with_keys["components"]["securitySchemes"].keys()
