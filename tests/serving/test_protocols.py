"""The table of protocols: both doors find the same in it, and the page for users names every row."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from starlette.routing import Match, Route

from gateway.metrics import ServingMetrics, process_registry
from gateway.serving.counts import Counts
from gateway.serving.doorway import Doorway
from gateway.serving.packing import Packer
from gateway.serving.protocols import codecs_of, kind_of, patterns_of, prediction_paths
from gateway.serving.target import Label, PredictionPath
from tests.serving.rig import Rig, run

PAGE = Path(__file__).parent.parent.parent / "docs" / "protocols.md"
PATHS = [
    *("/predict/iris", "/predict/a:b", "/predict/%C3%A9t%C3%A9", "/predict/a%2Fb", "/predict/", "//predict/a"),
    *("/v2/models/m/infer", "/v2/models/m/versions/7/infer", "/v2/models/m/versions//infer", "/v2/models/m"),
    *("/v1/models/m:predict", "/v1/models/m:PREDICT", "/v1/models/m:explain", "/v1/models/:predict", "/v1/models/m"),
    *("/v1/models/m/versions/7:classify", "/v1/models/m/labels/canary:regress", "/v1/models/m/labels/:regress"),
    *("/invocations", "/invocations/", "/models/m/invocations", "/predictions/m", "/predictions/m/7"),
    *("/predict/a/b", "/predictions/m/7/8"),
]  # fmt: skip


def by_the_web_framework(paths: tuple[PredictionPath, ...], raw_path: str) -> tuple[str, dict[str, str]] | None:
    """The row that Starlette finds, by its pattern, and the parts of the path."""
    scope = {"type": "http", "path": unquote(raw_path), "method": "POST", "root_path": ""}
    for row in paths:
        match, found = Route(row.pattern, object()).matches(scope)  # type: ignore[arg-type]  # nobody calls it
        if match is Match.FULL:
            return row.pattern, found["path_params"]
    return None


@pytest.mark.parametrize("raw_path", PATHS)
def test_both_doors_find_the_same_row(raw_path: str, tmp_path: Path) -> None:
    paths = prediction_paths()

    async def scenario() -> None:
        rig = Rig(tmp_path)
        counts = Counts(ServingMetrics(process_registry()))
        doorway = Doorway(rig.admission, rig.pipeline, counts, paths, Packer(0), default_model=lambda: "usual")
        found = by_the_web_framework(paths, raw_path)
        target = doorway.target(raw_path.encode())
        if found is None or "%2F" in raw_path:  # the latter is left to the web framework
            assert target is None
            return
        pattern, parts = found
        (row,) = (path for path in paths if path.pattern == pattern)
        assert target == row.target(parts, "usual")
        assert target.codec is row.codec
        assert isinstance(target.version, Label) == ("label" in parts)

    run(scenario)


def test_what_was_found_is_forgotten_when_the_default_model_is_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig, names = Rig(tmp_path), ["first"]
        counts = Counts(ServingMetrics(process_registry()))
        doorway = Doorway(
            *(rig.admission, rig.pipeline, counts, prediction_paths(), Packer(0)), default_model=lambda: names[0]
        )
        head = b"POST /invocations HTTP/1.1\r\ncontent-length: 0"
        for name in ("first", "second"):
            names[0] = name
            doorway.forget_targets()
            for _ in range(2):
                target, read = doorway.target(b"/invocations"), doorway.heads.read(head)
                assert target is not None
                assert read is not None
                assert target.model == read[0].model == name

    run(scenario)


def test_names_of_codecs_differ_and_the_page_names_every_path_and_codec() -> None:
    paths = prediction_paths()
    assert len({codec.name for codec in codecs_of(paths)}) == len({id(path.codec) for path in paths})
    page = PAGE.read_text()
    missing = [path.pattern for path in paths if f"`{path.pattern}`" not in page]
    missing += [codec.name for codec in codecs_of(paths) if f"| `{codec.name}` |" not in page]
    assert not missing


def test_a_call_tells_by_which_row_it_came() -> None:
    paths = prediction_paths()
    patterns = patterns_of(paths)
    for path in paths:
        names = [piece.partition("}")[0] for piece in path.pattern.split("{")[1:]]
        target = path.target(dict.fromkeys(names, "x"), "x")
        assert patterns[kind_of(path.codec.name, target.model, target.version)] == path.pattern
