"""Heads of prediction requests, read line by line: a line that was seen before is not parsed again.

Only heads that all parsers read alike are taken: POST of a prediction path by HTTP/1.1, header lines of plain names and
printable values, each name once, one content-length, and nothing that changes how the connection goes on or the body is
read. Whatever else comes is left to the HTTP parser, which decides what it is. Source: RFC 9112, sections 3, 5 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gateway.serving.target import Target

# Lines kept: those of some hundred clients. Lines that differ from request to request (trace ids) push them out now
# and then, and reading a line anew costs less than a microsecond.
_MAX_LINES = 8192
_MAX_LINE_BYTES = 512
_MAX_LINES_OF_A_HEAD = 64
# Whole heads kept. Where heads hardly repeat (trace ids again), the next so many are not kept.
_MAX_HEADS = 4096
_MAX_HEAD_BYTES = 1024
_PAUSE_HEADS = 100_000

_REQUEST_LINE = re.compile(rb"POST (/[A-Za-z0-9/._~%:@!$&'()*+,;=?-]*) HTTP/1\.1")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,10}")
# What says how the connection goes on, how the body is framed, or that it is compressed.
_PARSERS_BUSINESS = frozenset(
    {"connection", "content-encoding", "expect", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip


# What the path asks for, the headers by lower-case name, and the bytes of the body.
Head = tuple[Target, dict[str, str], int]


class HeadReader:
    """Reads the heads of all connections of a worker. Used on the event loop only.

    find_target: what a raw path asks for, None if it is no prediction path.
    """

    def __init__(self, find_target: Callable[[bytes], Target | None]) -> None:
        self._find_target = find_target
        self._targets: dict[bytes, Target] = {}  # by request line
        self._lines: dict[bytes, tuple[str, str]] = {}
        self._heads: dict[bytes, Head] = {}
        self._hits = 0
        self._pause = 0

    def read(self, head: bytes) -> Head | None:
        """A head without the empty line at its end; None if it is the HTTP parser's business."""
        found = self._heads.get(head)
        if found is not None:
            self._hits += 1
            return found
        found = self._read_lines(head)
        if self._pause:
            self._pause -= 1
        elif found is not None and len(head) <= _MAX_HEAD_BYTES:
            self._keep(head, found)
        return found

    def forget(self) -> None:
        """Paths may ask for something else from now on."""
        self._targets.clear()
        self._heads.clear()

    def _keep(self, head: bytes, found: Head) -> None:
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
            if self._hits < _MAX_HEADS:
                self._pause = _PAUSE_HEADS
            self._hits = 0
        self._heads[head] = found

    def _read_lines(self, head: bytes) -> Head | None:
        first, *lines = head.split(b"\r\n", _MAX_LINES_OF_A_HEAD)
        target = self._targets.get(first) or self._learn_target(first)
        if target is None:
            return None
        pairs = list(map(self._lines.get, lines))
        if None in pairs:
            pairs = [pair or self._learn_line(line) for pair, line in zip(pairs, lines, strict=True)]
            if None in pairs:
                return None
        headers = dict(pairs)  # type: ignore[arg-type]  # no None is left
        length = headers.get("content-length")
        if length is None or len(headers) != len(lines):
            return None
        return target, headers, int(length)

    def _learn_target(self, line: bytes) -> Target | None:
        match = _REQUEST_LINE.fullmatch(line)
        target = self._find_target(match.group(1)) if match is not None else None
        if target is not None and len(line) <= _MAX_LINE_BYTES:
            if len(self._targets) >= _MAX_LINES:
                self._targets.clear()
            self._targets[line] = target
        return target

    def _learn_line(self, line: bytes) -> tuple[str, str] | None:
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            return None
        name = match.group(1).decode().lower()
        if name in _PARSERS_BUSINESS and (name != "connection" or match.group(2).lower() != b"keep-alive"):
            return None
        if name == "content-length" and _CONTENT_LENGTH.fullmatch(match.group(2)) is None:
            return None
        pair = (name, match.group(2).decode("latin-1"))
        if len(line) <= _MAX_LINE_BYTES:
            if len(self._lines) >= _MAX_LINES:
                self._lines.clear()
            self._lines[line] = pair
        return pair
