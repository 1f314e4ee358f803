"""`make fuzz` in short: every path and method of both ports, a little of everything, from one seed."""

from __future__ import annotations

import math
from pathlib import Path

import fuzz
import pytest
from fuzzing import answers
from fuzzing.answers import Response, Wrong
from fuzzing.attacks import is_known
from fuzzing.bodies import SEEDS
from fuzzing.targets import Target, targets

EXAMPLES = 1
SEED = 7


def test_every_target_is_attacked_and_every_promise_is_kept(tmp_path: Path) -> None:
    fuzz.write_models(tmp_path / "models")
    found = targets(tmp_path)
    with fuzz.attacked(tmp_path, "fast", found) as one:
        fuzz.round_of(one, 0, seed=SEED, examples=EXAMPLES, until_s=math.inf)
        print(fuzz.summary([one]))
        assert [str(finding) for finding in one.siege.findings] == []
        assert set(one.siege.attacked) == set(found)
        assert not one.watch.replaced


def test_the_targets_are_those_of_the_applications(tmp_path: Path) -> None:
    found = targets(tmp_path)
    told = {(target.method, target.path) for target in found}
    assert {("POST", "/predict/{model}"), ("GET", "/readyz"), ("DELETE", "/admin/v1/tokens/{id}")} <= told
    assert len(found) > 50
    assert SEEDS.keys() <= told, "bodies of a path that is not there any more"


def test_of_every_target_that_takes_a_body_a_right_one_is_known(tmp_path: Path) -> None:
    without_body = {"/admin/v1/webhooks/{id}:test"}
    assert [str(each) for each in targets(tmp_path) if not is_known(each) and each.path not in without_body] == []


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie\r\n\r\n{}",
        b"200 OK\r\n\r\n",
        OK + b"{}\r\n\r\n",
    ],
    ids=["no length", "a line that is no header", "no status line", "more than was told"],
)
def test_what_is_no_answer_is_seen(data: bytes) -> None:
    with pytest.raises(Wrong):
        answers.read(data)


def test_answers_are_read_one_by_one_and_the_rest_is_left() -> None:
    found, left = answers.read(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + OK + OK[:-1])
    assert [response.body for response in found] == [b"{}", b"{}"]
    assert left == OK[:-1]


PROBLEM = b'{"type":"t","title":"t","status":404,"detail":"d","code":"c"}'
DOCUMENT = {"content-type": "application/problem+json"}


@pytest.mark.parametrize(
    ("response", "target"),
    [
        (Response(500, {}, b'{"error":"x"}'), Target("data", "/v2/models/{model}/infer", "POST")),
        (Response(503, {}, b'{"error":"x"}'), Target("data", "/v2/models/{model}/infer", "POST")),
        (Response(400, {}, b'{"error":{"code":"c","message":"m"}}'), Target("data", "/v2/models/{model}", "GET")),
        (Response(400, {}, b'{"error":"x"}'), Target("data", "/predict/{model}", "POST")),
        (Response(400, {}, b"Bad Request"), Target("data", "/livez", "GET")),
        (Response(404, {}, PROBLEM), Target("control", "/admin/v1/flags", "GET")),
        (Response(409, DOCUMENT, PROBLEM), Target("control", "/admin/v1/flags", "GET")),
        (Response(404, {}, b'{"errorCode":"c","errorDetails":"d"}'), Target("control", "/admin/v1/flags", "GET")),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Response) else "",
)
def test_an_error_in_another_shape_is_seen(response: Response, target: Target) -> None:
    with pytest.raises(Wrong):
        answers.check(response, target.port, target.path, target.method)


@pytest.mark.parametrize(
    ("response", "target"),
    [
        (Response(503, {"retry-after": "1"}, b'{"error":"x"}'), Target("data", "/v2/models/{model}/infer", "POST")),
        (Response(400, {}, b'{"error":{"code":"c","message":"m"}}'), Target("data", "/predict/{model}", "POST")),
        (Response(404, DOCUMENT, PROBLEM), Target("control", "/admin/v1/flags", "GET")),
        (Response(404, {}, b'{"errorDetails":"d"}'), Target("control", "/ofrep/v1/evaluate/flags", "POST")),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Response) else "",
)
def test_an_error_as_the_docs_have_it_is_none(response: Response, target: Target) -> None:
    answers.check(response, target.port, target.path, target.method)
