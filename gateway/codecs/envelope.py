"""Bodies of a few rows, told apart by what stands around their numbers: equal surroundings are understood once.

A body is cut into its numbers, the text between a ``[`` behind a key and the next ``]``, and the envelope around them.
Clients write the same envelope again and again. One that was proved to hold nothing but the numbers of so many rows
need not be parsed again: the numbers of many bodies are then read in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

import orjson

from gateway.codecs.codec import Request
from gateway.codecs.large import flat_arrays, flat_numbers
from gateway.codecs.numbers import Packer, packer, to_flat
from gateway.tensors import TensorSpec

# A request of so many rows may share its reading and its answering with others; one of more has enough work of its own.
MOST_ROWS = 64
# Envelopes kept: one per way of writing a request and number of rows.
_MAX_KNOWN = 1024
_MAX_ENVELOPE_BYTES = 1024
# To prove an envelope its body is read twice more, an object for each number: not for bodies of more numbers than this,
# and not for an envelope that was never seen before.
_MAX_NUMBERS = 2048
_MAX_BODY_BYTES = 64 * 1024
# From here on simdjson reads the numbers of a batch faster than an object for each of them can be made.
_LARGE_BYTES = 512
# What numbers, the commas between them and the spaces around them are made of.
_NUMERIC = b"0123456789+-.eE, \t\r\n"


class Envelopes:
    """The envelopes that one protocol knows for one version of one model. Used on the event loop only.

    key: behind which the numbers stand, as ``"data"`` with its quotes. depth: how many ``[`` behind it open them.
    spec: the only input, [-1, width]. decode: reads one whole body, None if it is not plainly rows.
    """

    def __init__(self, key: bytes, depth: int, spec: TensorSpec, decode: Callable[[bytes], Request | None]) -> None:
        self._key = key
        self._depth = depth
        self._width = spec.shape[1]
        self._datatype = spec.datatype
        self._row_bytes = self._width * spec.dtype.itemsize
        self._row = packer(spec.datatype, self._width)
        self._decode = decode
        self._known: dict[bytes, int] = {}  # the rows that stand in it
        self._unfit: dict[bytes, int] = {}
        self._seen: dict[bytes, int] = {}  # once, and not yet proved
        self._last = (b"", b"", 0)  # what stood before and behind the numbers of the latest body, and its rows

    def read(self, bodies: list[bytes]) -> list[bytes | None]:
        """The numbers of each body as they lie in memory; None where the body must be read alone."""
        if len(bodies) == 1:
            return [self._read_alone(bodies[0])]
        opening, closing, rows = self._last
        from_, to = len(opening), -len(closing)
        # Mostly all have the envelope that was seen last.
        texts = [body[from_:to] for body in bodies if body.startswith(opening) and body.endswith(closing)]
        if len(texts) == len(bodies) and closing:
            flats = self._together(texts, rows)
            if flats is not None:
                return [*flats]
        return [self._read_alone(body) for body in bodies]

    def _read_alone(self, body: bytes) -> bytes | None:
        opening, closing, rows = self._last
        if closing and body.startswith(opening) and body.endswith(closing):
            # Should it be cut elsewhere, a bracket stands between the two, which no row of numbers has.
            text = body[len(opening) : -len(closing)]
        else:
            start, stop = self._cut(body)
            rows = self._known.get(body[:start] + body[stop:], 0)
            if not rows:
                return None
            self._last = (body[:start], body[stop:], rows)
            text = body[start:stop]
        if len(text) >= _LARGE_BYTES or rows > 1:
            flats = self._together([text], rows)
            return flats[0] if flats is not None else None
        return _few(text, self._row)

    def _cut(self, body: bytes) -> tuple[int, int]:
        """Where the numbers of *body* stand, if it is a plain row; else anywhere."""
        start = body.find(self._key, 0, _MAX_BODY_BYTES)
        for _ in range(self._depth):
            start = body.find(b"[", start) + 1
        return start, body.find(b"]", start)

    def learn(self, body: bytes, rows: int = 1) -> None:
        """Remember the envelope of *body*, plainly so many rows, if it comes again and holds just their numbers.

        It does if whatever numbers are put into the same place come out as the rows' values. One such body would not
        show it: its numbers may also stand, for good, behind a second key of the same name.
        """
        if rows * self._width > _MAX_NUMBERS:
            return
        start, stop = self._cut(body)
        envelope = body[:start] + body[stop:]
        if stop < 0 or len(envelope) > _MAX_ENVELOPE_BYTES or envelope in self._unfit or envelope in self._known:
            return
        if self._seen.pop(envelope, None) is None:
            _keep(self._seen, envelope, rows)
            return
        # Two that differ in each number, and each in itself, to see that the cut is where the numbers come from.
        number = float if self._datatype.startswith("FP") else int
        probes = [[number(first + 2 * place) for place in range(rows * self._width)] for first in (3, 4)]
        fits = all(self._comes_out(probe, body[:start], body[stop:]) for probe in probes)
        _keep(self._known if fits else self._unfit, envelope, rows)

    def _comes_out(self, numbers: list[float], opening: bytes, closing: bytes) -> bool:
        """Whether a body is plainly rows of exactly these numbers when they stand in it."""
        request = self._decode(opening + orjson.dumps(numbers)[1:-1] + closing)
        flat = to_flat(numbers, self._datatype)
        return request is not None and request.is_plain and flat is not None and request.flat == flat.tobytes()

    def _together(self, texts: list[bytes], rows: int) -> list[bytes] | None:
        """The numbers of all texts; None if any of them is not *rows* times *width* finite numbers.

        Rows are read text by text. No text of one row holds anything but digits, signs, points, exponents, spaces and
        width - 1 commas: if all of them, joined by commas, are one JSON array, then each number of it stands in one
        text, *width* in each.
        """
        if rows > 1:
            size_bytes = rows * self._row_bytes
            raw = flat_arrays([b"[%b]" % text for text in texts], rows * self._width, self._datatype)
            if raw is None:
                return None
            return [raw[start : start + size_bytes] for start in range(0, len(raw), size_bytes)]
        if set(map(_commas, texts)) != {self._width - 1}:
            return None
        joined = b",".join(texts)
        if joined.translate(None, _NUMERIC):
            return None
        if len(joined) < _LARGE_BYTES:
            raw = _few(joined, self._row if len(texts) == 1 else packer(self._datatype, self._width * len(texts)))
        else:
            raw = flat_numbers(b"[%b]" % joined, self._datatype)
        row_bytes = self._row_bytes
        if raw is None or len(raw) != row_bytes * len(texts):  # the only number may be missing
            return None
        return [raw[start : start + row_bytes] for start in range(0, len(raw), row_bytes)]


def _keep(envelopes: dict[bytes, int], envelope: bytes, rows: int) -> None:
    """Put it to the others; the oldest of too many goes."""
    if len(envelopes) >= _MAX_KNOWN:
        del envelopes[next(iter(envelopes))]
    envelopes[envelope] = rows


_commas = methodcaller("count", b",")


def _few(text: bytes, pack: Packer | None) -> bytes | None:
    """The numbers of a short JSON array, of which *text* is the inside; None if *pack* takes another number of them."""
    try:
        return pack(orjson.loads(b"[%b]" % text)) if pack is not None else None
    except orjson.JSONDecodeError:
        return None
