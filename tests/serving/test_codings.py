"""Content codings: what is read, what is answered with, and what is refused by name."""

from __future__ import annotations

import asyncio
import json
import os
import zlib

import pytest

from gateway.errors import InvalidInput, UnsupportedEncoding
from gateway.serving.codings import coding_for, coding_of
from gateway.serving.packing import Packer
from gateway.serving.replies import NO_HEADERS, Reply


@pytest.mark.parametrize(
    ("came", "coding"),
    [("gzip", "gzip"), ("X-GZIP", "gzip"), (" deflate ", "deflate"), ("", None), ("Identity", None)],
)
def test_what_a_body_is_compressed_with(came: str, coding: str | None) -> None:
    assert coding_of(came) == coding


@pytest.mark.parametrize("came", ["br", "zstd", "gzip, gzip", "gzip;q=1", "compress"])
def test_other_codings_are_refused_with_those_that_are_read(came: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="expected gzip, deflate or identity"):
        coding_of(came)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.1, deflate;q=0.2", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("*", "gzip"),
        ("gzip;q=0, *;q=0.5", "deflate"),
        ("X-Gzip", "gzip"),
        ("identity", None),
        ("br;q=1.0, *;q=0", None),
        ("gzip;q=nonsense", None),
        (";;,q=,", None),
    ],
)
def test_what_a_client_is_answered_with(accepted: str, coding: str | None) -> None:
    assert coding_for(accepted) == coding


def reply(body: bytes, error: InvalidInput | None = None) -> Reply:
    return Reply(error, "r", "p", NO_HEADERS, ((b"content-type", b"application/json"),), body)


NUMBERS = json.dumps([number / 7 for number in range(2000)]).encode()
GZIP = {"accept-encoding": "gzip"}


def test_a_large_answer_is_compressed_and_says_so() -> None:
    async def scenario() -> None:
        packing = Packer(1000).packing(reply(NUMBERS), GZIP)
        assert packing is not None
        packed = await packing
        assert zlib.decompress(packed.body, 31) == NUMBERS
        assert packed.content[1:] == ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))

    asyncio.run(scenario())


def test_what_gets_no_smaller_goes_out_as_it_is() -> None:
    async def scenario() -> None:
        noise = reply(os.urandom(20_000))
        packing = Packer(1000).packing(noise, GZIP)
        assert packing is not None
        assert await packing == noise

    asyncio.run(scenario())


def test_nobody_waits_for_what_need_not_be_compressed() -> None:
    async def scenario() -> None:
        packer = Packer(len(NUMBERS))
        assert packer.packing(reply(NUMBERS), {}) is None
        assert packer.packing(reply(NUMBERS[1:]), GZIP) is None
        assert packer.packing(reply(NUMBERS, InvalidInput("x", "a", "b")), GZIP) is None
        assert Packer(0).packing(reply(NUMBERS), GZIP) is None

    asyncio.run(scenario())


def test_a_worker_that_is_busy_compressing_leaves_further_answers_as_they_are() -> None:
    async def scenario() -> None:
        packer = Packer(1000)
        large = reply(b"[0.125, 0.25]" * 100_000)
        begun = [packer.packing(large, GZIP) for _ in range(40)]
        waiting = [packing for packing in begun if packing is not None]
        assert 0 < len(waiting) < 40
        await asyncio.gather(*waiting)
        assert packer.packing(large, GZIP) is not None

    asyncio.run(scenario())
