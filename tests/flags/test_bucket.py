"""The sticky hash against the published vectors and a CBOR library that we did not write."""

from __future__ import annotations

import cbor2
import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flags.bucket import FLAGD_V2, FLAGD_V3, canonical_cbor, key_hash, place, value_hash
from gateway.flags.compile import SPLIT, Route, compile_route
from gateway.flags.document import parse_flag

VECTORS = [
    # key, v2 hash and place of 10,000, v3 hash and place; the flag's key is "flag"
    ("user-1", 3034658845, 7065, 1204790219, 2805),
    ("ü", 1258344168, 2929, 2828915960, 6586),
    ("x" * 30, 1455364175, 3388, 4291766311, 9992),
]


@pytest.mark.parametrize(("key", "v2", "v2_place", "v3", "v3_place"), VECTORS)
def test_both_generations_give_the_published_vectors(key: str, v2: int, v2_place: int, v3: int, v3_place: int) -> None:
    assert key_hash("flag", FLAGD_V2)(key) == v2
    assert key_hash("flag", FLAGD_V3)(key) == v3
    assert (place(v2, 10_000), place(v3, 10_000)) == (v2_place, v3_place)


@given(st.one_of(st.text(), st.booleans(), st.integers(-(2**64), 2**64 - 1), st.floats(allow_nan=False)))
def test_canonical_cbor_is_what_a_cbor_library_writes(value: str | bool | int | float) -> None:
    wanted = int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value
    if isinstance(value, float) and abs(value) >= 2**63:
        return  # beyond 64 bits flagd keeps some floats and not others; no key looks like that
    assert canonical_cbor(value) == cbor2.dumps(wanted, canonical=True)


@pytest.mark.parametrize("length", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_a_key_of_any_length_hashes_like_the_pair_in_cbor(length: int) -> None:
    key = "k" * length
    whole = cbor2.dumps(["iris.route", key], canonical=True)
    assert whole.endswith(canonical_cbor(key))
    assert key_hash("iris.route", FLAGD_V3)(key) == _murmur(whole)


def test_the_second_generation_hashes_text_only() -> None:
    assert value_hash(FLAGD_V2)(7) is None
    assert value_hash(FLAGD_V2)("flaguser-1") == 3034658845
    assert value_hash(FLAGD_V3)(None) is None


def route_of_second_generation(fractional: list[object]) -> Route:
    flag = {
        "state": "ENABLED",
        "variants": {"below": "1", "here": "2", "above": "3"},
        "defaultVariant": "below",
        "targeting": {"fractional": fractional},
    }
    return compile_route("m", parse_flag("m.route", flag), FLAGD_V2)


@pytest.mark.parametrize(("key", "v2_place"), [(key, v2_place) for key, _, v2_place, _, _ in VECTORS])
def test_a_split_of_the_second_generation_puts_a_key_at_its_published_place(key: str, v2_place: int) -> None:
    # the vectors' flag has the key "flag"; ours must be called <model>.route, so the rule names the text itself
    text = {"cat": ["flag", {"var": "targetingKey"}]}
    fractions = [["below", v2_place], ["here", 1], ["above", 9_999 - v2_place]]
    route = route_of_second_generation([text, *fractions])
    assert route.decide(key, "p", {}, "native") == ("here", "2", SPLIT)


@given(st.text(min_size=1), st.lists(st.integers(0, 10_000), min_size=3, max_size=3).filter(any))
def test_a_split_of_the_second_generation_is_the_written_rule(key: str, weights: list[int]) -> None:
    """flagd's Go source in three lines: the text of both keys, a place of 2^32, the first cumulated weight above it."""
    names = ("below", "here", "above")
    at = mmh3.hash(f"m.route{key}".encode(), 0, signed=False) * sum(weights) >> 32
    wanted = next(name for i, name in enumerate(names) if at < sum(weights[: i + 1]))
    route = route_of_second_generation([[name, weight] for name, weight in zip(names, weights, strict=True)])
    assert route.decide(key, "p", {}, "native").variant == wanted


def test_an_unknown_generation_is_refused() -> None:
    with pytest.raises(ValueError, match="flagd-v9"):
        key_hash("flag", "flagd-v9")


def _murmur(raw: bytes) -> int:
    return mmh3.hash(raw, 0, False)
