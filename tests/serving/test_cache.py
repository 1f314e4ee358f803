"""The prediction cache: equal means equal byte for byte, old and large answers are not kept, and it stays in bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.codec import Encoded, Request
from gateway.serving.cache import MAX_ENTRY_BYTES, PredictionCache, raw_key, tensor_key
from gateway.settings import CacheSettings
from gateway.tensors import Array, Signature, TensorSpec
from tests.puppet import FakeClock

TWO = Signature(
    inputs=(TensorSpec("a", "FP32", (-1, -1)), TensorSpec("t", "BYTES", (-1,))),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)


def texts(values: list[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def put(cache: PredictionCache, key: object, value: float, *, ttl_s: float = 10.0, width: int = 1) -> None:
    request = Request(1, {"a": np.zeros((1, 1), np.float32)})
    cache.put(key, request, {"y": np.full(width, value, np.float32)}, Encoded(b"x", ()), ttl_s=ttl_s)


def test_an_answer_is_kept_until_it_is_too_old() -> None:
    clock = FakeClock()
    cache = PredictionCache(CacheSettings(), clock=clock)
    key = raw_key("digest", "oip", "", b"body")
    put(cache, key, 1.0, ttl_s=5.0)
    clock.advance(4.9)
    kept = cache.get(key)
    assert kept is not None
    assert kept.outputs["y"].tolist() == [1.0]
    clock.advance(0.2)
    assert cache.get(key) is None
    cache.sweep()
    assert cache.size_bytes == 0


def test_another_version_protocol_header_or_body_is_another_question() -> None:
    cache = PredictionCache(CacheSettings(), clock=FakeClock())
    put(cache, raw_key("digest", "oip", "", b"body"), 1.0)
    for key in [
        raw_key("other", "oip", "", b"body"),
        raw_key("digest", "native", "", b"body"),
        raw_key("digest", "oip", "4", b"body"),
        raw_key("digest", "oip", "", b"body "),
    ]:
        assert cache.get(key) is None


def test_a_package_that_is_gone_takes_its_answers_along() -> None:
    cache = PredictionCache(CacheSettings(), clock=FakeClock())
    for digest in ("old", "new"):
        for number in range(3):
            put(cache, raw_key(digest, "oip", "", b"%d" % number), number)
    assert cache.purge("old") == 3
    assert cache.get(raw_key("old", "oip", "", b"1")) is None
    assert cache.get(raw_key("new", "oip", "", b"1")) is not None


def test_a_slice_of_a_batch_is_copied() -> None:
    cache = PredictionCache(CacheSettings(), clock=FakeClock())
    batch = np.zeros(1000, np.float32)
    cache.put(("d", 1), Request(1, {"a": batch[:1]}), {"y": batch[5:6]}, None, ttl_s=1.0)
    batch[5] = 7.0
    kept = cache.get(("d", 1))
    assert kept is not None
    assert kept.outputs["y"].tolist() == [0.0]
    assert kept.outputs["y"].base is None


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    cache = PredictionCache(CacheSettings(), clock=FakeClock())
    put(cache, raw_key("d", "oip", "", b""), 1.0, width=MAX_ENTRY_BYTES)
    assert cache.size_bytes == 0


def test_no_bytes_means_no_cache() -> None:
    cache = PredictionCache(CacheSettings(max_bytes=0), clock=FakeClock())
    assert not cache.enabled
    put(cache, raw_key("d", "oip", "", b""), 1.0)
    assert cache.get(raw_key("d", "oip", "", b"")) is None


@given(
    puts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 2000), st.floats(0.1, 20), st.floats(0, 5)), max_size=80)
)
def test_the_cache_stays_in_bounds_and_never_gives_what_was_not_put(puts: list[tuple[int, int, float, float]]) -> None:
    clock = FakeClock()
    cache = PredictionCache(CacheSettings(max_bytes=20_000), clock=clock)
    truth: dict[int, tuple[float, float]] = {}
    for number, (name, width, ttl_s, pause_s) in enumerate(puts):
        clock.advance(pause_s)
        put(cache, raw_key("d", "oip", "", b"%d" % name), float(number), ttl_s=ttl_s, width=width)
        truth[name] = (float(number), clock() + ttl_s)
        assert cache.size_bytes <= 20_000
        for asked, (value, expires_s) in truth.items():
            kept = cache.get(raw_key("d", "oip", "", b"%d" % asked))
            if kept is not None:
                assert kept.outputs["y"][0] == value
                assert clock() < expires_s


TABLES: st.SearchStrategy[tuple[Any, ...]] = st.tuples(
    st.sampled_from([(1, 4), (2, 2), (4, 1)]),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, float("nan")]), min_size=4, max_size=4),
    st.lists(st.sampled_from([b"", b"a", b"ab"]), min_size=1, max_size=2),
)


@given(one=TABLES, other=TABLES)
def test_keys_of_inputs_are_equal_only_if_the_inputs_are(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    keys = []
    for shape, numbers, words in (one, other):
        inputs = {"a": np.array(numbers, np.float32).reshape(shape), "t": texts(words)}
        keys.append(tensor_key("d", TWO, Request(shape[0], inputs)))
    same = one[0] == other[0] and np.array(one[1]).tobytes() == np.array(other[1]).tobytes() and one[2] == other[2]
    assert (keys[0] == keys[1]) is same
