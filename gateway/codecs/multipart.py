"""A body of several parts, as browsers and ``curl -F`` send it. Source: RFC 7578."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from gateway.errors import InvalidInput

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_NAME = re.compile(r';\s*name=(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE)
# More parts than any form of ours has.
_MAX_PARTS = 1000


class Part(NamedTuple):
    """One part. content_type: lower-case and without parameters; empty if it says none."""

    name: str
    content_type: str
    content: bytes


def parts_of(body: bytes, content_type: str) -> list[Part]:
    """The parts of a body of type ``multipart/form-data``. Raises InvalidInput."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise InvalidInput("header content-type", repr(content_type[:40]), "multipart/form-data with its boundary")
    delimiter = b"--" + (match.group(1) or match.group(2)).encode("latin-1")
    pieces = (b"\r\n" + body).split(b"\r\n" + delimiter, _MAX_PARTS + 1)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise InvalidInput("body", "no whole parts", f"up to {_MAX_PARTS} parts between the boundaries")
    return list(_read(pieces[1:-1]))


def _read(pieces: list[bytes]) -> Iterator[Part]:
    for index, piece in enumerate(pieces):
        head, gap, content = piece.partition(b"\r\n\r\n")
        headers = {}
        for line in head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        match = _NAME.search(headers.get("content-disposition", ""))
        if not gap or match is None:
            raise InvalidInput(f"part {index}", "no name", 'content-disposition: form-data; name="data"')
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        yield Part(match.group(1) or match.group(2) or "", kind, content)
