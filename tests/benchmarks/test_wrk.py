"""What wrk prints, and the scripts that it is given."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speed import asks, wrk
from speed.asks import FIRST, Ask

URL = "http://127.0.0.1:8080"
ROW = (5.1, 3.5, 1.4, 0.2)
PRINTED = """Running 2s test @ http://127.0.0.1:8080
figures {"requests": 1000, "duration_us": 2000000, "errors": %d, "failures": %d, "p50_us": 640, "p99_us": 2100, \
"p999_us": 9000, "max_us": 12000}
"""


def test_figures_are_read_in_requests_per_second_and_milliseconds() -> None:
    load = wrk.parse(PRINTED % (0, 0), busy_s=1.5)
    assert (load.requests, load.requests_per_s, load.busy) == (1000, 500.0, 0.75)
    assert (load.p50_ms, load.p99_ms, load.p999_ms) == (0.64, 2.1, 9.0)


@pytest.mark.parametrize("printed", [PRINTED % (1, 0), PRINTED % (0, 1), "unable to connect\n", ""])
def test_a_run_with_a_failed_request_or_without_figures_is_no_measurement(printed: str) -> None:
    with pytest.raises(wrk.LoadFailed):
        wrk.parse(printed, busy_s=1.0)


def test_where_refusals_are_looked_for_failures_are_told() -> None:
    load = wrk.parse(PRINTED % (3, 40), busy_s=1.5, may_refuse=True)
    assert (load.requests, load.refused, load.unanswered) == (1000, 40, 3)


def test_a_run_without_an_answer_is_no_measurement() -> None:
    with pytest.raises(wrk.LoadFailed, match="no request"):
        wrk.parse((PRINTED % (0, 0)).replace("1000", "0"), busy_s=1.0)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("unique", [True, False])
def test_requests_have_the_length_that_they_say_and_differ_where_they_should(keyed: bool, unique: bool) -> None:
    ask = asks.one_row("/v2/models/iris/infer", ROW, unique=unique, keyed=keyed)
    requests = asks.whole(ask, URL, 50, start=999_990)
    bodies, keys = set(), set()
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        assert lines[0] == "POST /v2/models/iris/infer HTTP/1.1"
        assert (headers["host"], int(headers["content-length"])) == ("127.0.0.1:8080", len(body))
        (tensor,) = json.loads(body)["inputs"]
        assert (tensor["shape"], tensor["data"][1:]) == ([1, 4], [3.5, 1.4, 0.2])
        bodies.add(body)
        keys.add(headers.get("x-targeting-key"))
    assert len(bodies) == (50 if unique else 1)
    assert len(keys) == (50 if keyed else 1)


@given(st.integers(0, 2 * asks.DISTINCT))
def test_each_first_value_lies_between_4_and_8(start: int) -> None:
    (request,) = asks.whole(asks.one_row("/", ROW), URL, 1, start)
    value = json.loads(request.partition(b"\r\n\r\n")[2])["inputs"][0]["data"][0]
    assert 4 <= value < 8


def test_a_row_for_those_who_do_not_speak_the_protocol_is_a_list_of_rows() -> None:
    assert json.loads(asks.body([ROW], asks.ROWS)) == {"inputs": [list(ROW)]}


@pytest.mark.parametrize("binary", [True, False])
def test_many_rows_are_cut_into_requests_that_are_sent_in_turn(binary: bool) -> None:
    rows = [[float(number), 0.5] for number in range(9)]
    ask = asks.many_rows("/", rows, 4, binary=binary)
    assert len(ask.bodies) == 2
    if binary:
        head_bytes = int(dict(ask.headers)["inference-header-content-length"])
        (tensor,) = json.loads(ask.bodies[0][:head_bytes])["inputs"]
        assert len(ask.bodies[0]) == head_bytes + tensor["parameters"]["binary_data_size"] == head_bytes + 32
    else:
        assert json.loads(ask.bodies[1])["inputs"][0]["data"][:4] == [4.0, 0.5, 5.0, 0.5]


@given(st.binary(max_size=40).filter(lambda body: FIRST not in body))
def test_a_script_holds_every_byte_of_a_body(body: bytes) -> None:
    script = asks.script(Ask("/", (body,), keyed=False), URL, 0)
    (text,) = re.findall(r'^local requests = \{\{"(.*)"\}\}$', script, re.MULTILINE)
    read = re.sub(r"\\(\d{3})", lambda match: chr(int(match.group(1))), text).encode("latin-1")
    assert read.endswith(b"\r\n\r\n" + body)


def test_a_script_joins_only_what_the_ask_has() -> None:
    joins = {
        (keyed, unique): re.findall(r"^  return (r\[1\].*)$", asks.script(ask, URL, 0), re.MULTILINE)[0].count("..")
        for keyed in (True, False)
        for unique in (True, False)
        for ask in [asks.one_row("/", ROW, keyed=keyed, unique=unique)]
    }
    assert joins == {(True, True): 4, (True, False): 2, (False, True): 2, (False, False): 0}
