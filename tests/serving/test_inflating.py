"""Compressed bodies: whole ones are read, bombs and torn ones refused early, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge, DeadlineExceeded, GatewayError, InvalidInput, TooManyBytesInFlight
from gateway.serving.call import Call
from gateway.serving.doorway import Doorway
from gateway.serving.inflating import PORTION_BYTES
from gateway.serving.packing import Packer
from gateway.serving.target import Target
from tests.serving.rig import CODECS, Caller, Rig, run

(OIP,) = [codec for codec in CODECS if codec.name == "oip"]
MOST = 16 * 2**20


def ask(rig: Rig, packed: bytes, coding: str = "gzip", **more: str) -> Caller:
    """One request with a compressed body, as a door hands it over."""
    headers = {"content-encoding": coding, **more}
    call = rig.admission.open(Target(OIP, "m", None), headers, len(packed))
    call.body = packed
    caller = Caller(call, [])
    rig.callers.append(caller)

    def on_reply(_: Call, error: GatewayError | None, route: Any, content: Any, body: bytes) -> None:
        caller.answers.append((error, {}, body))
        rig.admission.close(call)

    Doorway(rig.admission, rig.pipeline, rig.counts, (), Packer(0)).begin(call, on_reply)
    return caller


def tensor(*values: float) -> bytes:
    document = {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]}
    return json.dumps(document).encode()


async def ended(rig: Rig, caller: Caller, turns: int = 2000) -> int:
    """Turn the loop until the caller has an answer; returns the turns that it took."""
    for turn in range(turns):
        if caller.answers:
            return turn
        await rig.settle()
    raise AssertionError("no answer")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_gets_the_answer_of_the_same_body_uncompressed(tmp_path: Path, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress

    async def scenario() -> None:
        rig = Rig(tmp_path)
        caller = ask(rig, pack(tensor(1.0, 2.5)), coding)
        await ended(rig, caller)
        assert caller.outputs() == [2.0, 5.0]
        again = rig.ask(1.0, 2.5)
        await ended(rig, again)
        assert again.headers["x-cache"] == "hit"
        rig.check_nothing_is_held()

    run(scenario)


def test_a_bomb_is_refused_when_the_limit_is_reached_and_not_inflated_further(tmp_path: Path) -> None:
    # 64 MiB of spaces.
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    part = b" " * 2**20
    bomb = b"".join([packer.compress(part) for _ in range(64)]) + packer.flush()
    assert len(bomb) < 100_000

    async def scenario() -> None:
        rig = Rig(tmp_path)
        tracemalloc.start()
        try:
            caller = ask(rig, bomb)
            await ended(rig, caller)
            assert tracemalloc.get_traced_memory()[1] < 2 * MOST
        finally:
            tracemalloc.stop()
        assert isinstance(caller.error, BodyTooLarge)
        assert caller.error.max_bytes == MOST
        assert MOST < caller.error.came_bytes <= MOST + PORTION_BYTES
        assert "once inflated" in str(caller.error)
        rig.check_nothing_is_held()

    run(scenario)


def test_what_comes_out_counts_as_bytes_in_flight(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, most_bytes=400_000)
        first = ask(rig, zlib.compress(tensor(1.0) + b" " * 250_000), "deflate")
        for portions in (2, 3):  # before it is whole
            await rig.turn()
            assert rig.admission.in_flight_bytes > portions * PORTION_BYTES
        second = ask(rig, zlib.compress(tensor(1.0) + b" " * 250_000), "deflate")
        await ended(rig, second)
        await ended(rig, first)
        errors = [caller.error for caller in (first, second)]
        assert [type(error) for error in errors if error is not None] == [TooManyBytesInFlight]
        alone = ask(rig, zlib.compress(b" " * 450_000), "deflate")
        await ended(rig, alone)
        assert isinstance(alone.error, BodyTooLarge)
        rig.check_nothing_is_held()

    run(scenario)


def test_others_are_answered_while_a_large_body_is_inflated(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        large = ask(rig, zlib.compress(tensor(*map(float, range(1000))) + b" " * 8_000_000), "deflate")
        small = rig.ask(4.0)
        turns = await ended(rig, small)
        assert not large.answers
        assert turns < 5
        await ended(rig, large)
        assert large.outputs() == [2.0 * value for value in range(1000)]
        rig.check_nothing_is_held()

    run(scenario)


def test_inflating_ends_with_the_deadline_or_when_the_client_leaves(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        packed = zlib.compress(tensor(1.0) + b" " * 8_000_000)
        late, gone = ask(rig, packed, "deflate"), ask(rig, packed, "deflate")
        await rig.turn()
        rig.leave(gone)
        rig.clock.advance(6.0)
        await ended(rig, late)
        assert isinstance(late.error, DeadlineExceeded)
        assert not gone.answers
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)


WHOLE = gzip.compress(tensor(1.0))


@pytest.mark.parametrize(
    ("packed", "coding", "words"),
    [
        (b"", "gzip", "ends after 0 bytes"),
        (WHOLE[:-1], "gzip", "ends after"),
        (WHOLE[:12], "gzip", "ends after"),
        (tensor(1.0), "gzip", "incorrect header check"),
        (WHOLE, "deflate", "incorrect header check"),
        (WHOLE[:-5] + b"\0" + WHOLE[-4:], "gzip", "incorrect data check"),
        (zlib.compress(tensor(1.0)) + b"\n", "deflate", "more bytes behind the end"),
        (WHOLE + b"rest", "gzip", "incorrect header check"),
        (WHOLE + WHOLE[:-2], "gzip", "ends after"),
        (gzip.compress(b"") * 2000 + WHOLE, "gzip", "more bytes behind the end of 1024"),
    ],
    ids=["nothing", "a byte short", "its beginning", "plain", "another coding", "a wrong sum", "a line more",
         "bytes more", "a second one torn", "many members"],
)  # fmt: skip
def test_what_is_no_whole_stream_is_refused(tmp_path: Path, packed: bytes, coding: str, words: str) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        caller = ask(rig, packed, coding)
        await ended(rig, caller)
        assert isinstance(caller.error, InvalidInput)
        assert caller.error.field == "body"
        assert words in str(caller.error)
        rig.check_nothing_is_held()

    run(scenario)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 5000), max_size=3),
    spaces=st.sampled_from([0, 3, 70_000, 200_000]),
    level=st.integers(0, 9),
    cut=st.none() | st.integers(1, 17),  # less than a whole member
)
def test_any_whole_stream_is_read_and_no_torn_one_is(
    tmp_path: Path, cuts: list[int], spaces: int, level: int, cut: int | None
) -> None:
    """cuts: where one member ends and the next begins. cut: so many bytes are missing at the end."""
    body = tensor(*(number / 3 for number in range(100))) + b" " * spaces
    ends = [0, *sorted(cuts), len(body)]
    packed = b"".join(gzip.compress(body[a:b], level) for a, b in itertools.pairwise(ends) if a < b)

    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        caller = ask(rig, packed if cut is None else packed[:-cut])
        await ended(rig, caller)
        if cut is None:
            assert caller.outputs() == [2 * (number / 3) for number in range(100)]
        else:
            assert isinstance(caller.error, InvalidInput)
        rig.check_nothing_is_held()

    asyncio.run(scenario())
