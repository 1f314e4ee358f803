"""How an answer is written: what is written in a quick way has the bytes of the ordinary one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.codecs.codec import JSON_HEADERS
from gateway.serving.replies import STATUS, Reply, block, ok_json_wire, refused_json_wire, wire_bytes

# One more has a field of its own, and comes before any body.
REFUSALS = [kind for kind in STATUS if issubclass(kind, errors.Refused) and kind is not errors.QuotaExceeded]
IDS = st.text("0123456789abcdef-", min_size=1, max_size=40)
PAIRS = st.lists(st.tuples(st.sampled_from([b"x-model-version", b"x-cache"]), st.binary(max_size=9)), max_size=3)


@given(
    kind=st.sampled_from(REFUSALS),
    wait_s=st.floats(0, 1e4),
    request_id=IDS,
    prediction_id=IDS | st.just(""),
    pairs=PAIRS,
    body=st.binary(max_size=64) | st.just(b"x" * 5000),
    seed=st.integers(0, 9),
)
def test_a_refusal_is_written_as_any_error_is(
    kind: type[errors.Refused],
    wait_s: float,
    request_id: str,
    prediction_id: str,
    pairs: list[tuple[bytes, bytes]],
    body: bytes,
    seed: int,
) -> None:
    error, route = kind("full", retry_after_s=wait_s), block(tuple(pairs))
    random.seed(seed)
    quick = refused_json_wire(error, request_id, prediction_id, route, body)
    random.seed(seed)
    reply = Reply(error, request_id, prediction_id, route, JSON_HEADERS, body)
    assert quick == wire_bytes(reply, keep_alive=True)


@given(request_id=IDS, prediction_id=IDS, pairs=PAIRS, body=st.binary(max_size=64) | st.just(b"x" * 5000))
def test_an_answer_is_written_as_any_other_is(
    request_id: str, prediction_id: str, pairs: list[tuple[bytes, bytes]], body: bytes
) -> None:
    route = block(tuple(pairs))
    reply = Reply(None, request_id, prediction_id, route, JSON_HEADERS, body)
    assert ok_json_wire(request_id, prediction_id, route, body) == wire_bytes(reply, keep_alive=True)


@pytest.mark.parametrize(
    "error", [errors.UnknownModel("m"), errors.MethodNotAllowed("GET", "POST"), errors.Refused("later")]
)
def test_what_has_headers_of_its_own_or_no_status_is_left_to_the_ordinary_way(error: errors.GatewayError) -> None:
    assert refused_json_wire(error, "a", "", block(()), b"{}") is None
