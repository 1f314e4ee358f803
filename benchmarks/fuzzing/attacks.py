"""What is sent to one target: requests that are right as HTTP, whatever they ask, and bytes that are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st

from fuzzing.bodies import SEEDS, Payload, payloads
from fuzzing.targets import Target

Draw = Callable[..., Any]
Header = tuple[bytes, bytes]
# answer: wait for it. silence: say no more, and let the gateway end it by its own clocks. shut: say that nothing more
# comes. leave: a reset as soon as all is sent.
Ending = Literal["answer", "silence", "shut", "leave"]

# Documents of all flags, of which the innocents' must not be torn out by a stray byte.
WHOLE = {
    *(("PUT", "/admin/v1/flags"), ("PATCH", "/admin/v1/flags"), ("POST", "/admin/v1/flags:import")),
}
_ODD_SEGMENTS = (
    *(b"%00", b"%2F", b"%2e%2e", b"..", b".", b"%ff%fe", b"%C3%A9", b"%", b"%zz", b"x" * 600, b";a=b", b"*", b":", b""),
    *(b"a%20b", b"maple%2F1", b"%0d%0aset-cookie:%20x", b"nobody", b"-1", b"0" * 32, b"%F0%9F%98%80", b"{model}", b"'"),
)
_ODD_VALUES = (
    b"",
    b" ",
    b"0",
    b"-1",
    b"1e9",
    b"99999999999999999999",
    b"nan",
    b"x" * 3000,
    b"\xe9\xff",
    b"a, b",
    b"\t,",
)
# Headers that mean something here, with values as they are sent, right or wrong; legal as HTTP.
_MEANING: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (
        b"content-type",
        (b"application/json", b"text/plain", b"application/octet-stream", b"application/json; charset=x"),
    ),
    (b"content-encoding", (b"identity", b"gzip", b"br", b"identity, gzip")),
    (b"accept", (b"*/*", b"text/html", b"application/json;q=0")),
    (b"accept-encoding", (b"gzip", b"identity;q=0", b"*")),
    (b"x-request-id", (b"r-1", b"y" * 128, b"y" * 129)),
    (b"x-targeting-key", (b"user-1", b"\xc3\xa9", b"z" * 4000)),
    (b"x-request-timeout-ms", (b"1", b"50", b"3000", b"60000", b"60001", b"0", b"1.5")),
    (b"x-request-priority", (b"critical", b"sheddable", b"NORMAL")),
    (b"x-timing", (b"1", b"2")),
    (b"traceparent", (b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"00-x")),
    (b"inference-header-content-length", (b"0", b"1", b"10", b"1e2")),
    (b"authorization", (b"Bearer x", b"Basic eDp4", b"Bearer", b"Bearer sgk_1_2")),
    (b"x-api-key", (b"sgk_1_2",)),
    (b"if-match", (b'"0"', b'"999999999999999999"', b"*", b'W/"1"', b"7")),
    (b"if-none-match", (b"*", b'"1"')),
    (b"x-change-reason", (b"why", b"\xc3\xa9", b"\xff", b"r" * 1001)),
    (b"x-break-glass", (b"true", b"yes")),
    (b"connection", (b"close", b"keep-alive", b"upgrade", b"Upgrade, HTTP2-Settings")),
    (b"upgrade", (b"h2c", b"websocket")),
    (b"http2-settings", (b"AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",)),
    (b"expect", (b"100-continue", b"200-ok")),
    (b"cookie", (b"a=b; c=" + b"d" * 2000,)),
    (b"forwarded", (b'for="[::1]"',)),
    (b"range", (b"bytes=0-1",)),
    (b"te", (b"trailers",)),
)
# Lines that no client should send.
_BROKEN_LINES = (
    *(
        b"content-length: 5",
        b"content-length: -1",
        b"content-length: 0x10",
        b"content-length: 1, 1",
        b"content-length:",
    ),
    *(b"content-length: 99999999999999999999999", b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked"),
    *(b"transfer-encoding: chunked, identity", b"transfer-encoding: xchunked", b"Transfer-Encoding : chunked", b": x"),
    *(
        b"no colon",
        b" folded: x",
        b"\tfolded",
        b"x\0y: z",
        b"x: \0",
        b"x: a\rb",
        b"x: a\nb",
        b"\xff: y",
        b"host: a",
        b"x" * 5000,
    ),
    *(b"x:" + b"y" * 70_000, b"content-length: 5\r\ncontent-length: 6", b"host: a\r\nhost: b", b"x: y\n\nz: a"),
)
_BROKEN_STARTS = (
    *(
        b"",
        b"\r\n",
        b"\n\n\n",
        b"GET",
        b"GET /",
        b"GET / HTTP/1.1",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ),
    *(
        b"\0" * 64,
        b"\xff" * 64,
        b"POST http://[::1 HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1",
    ),
    *(
        b"GET //livez HTTP/1.1",
        b"GET /livez HTTP/9.9",
        b"GET /livez HTTP/1.1 x",
        b"get /livez http/1.1",
        b"G\xc9T / HTTP/1.1",
    ),
    *(
        b"GET \xe9\xff HTTP/1.1",
        b"GET /livez?\0 HTTP/1.1",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        b"GET\t/livez\tHTTP/1.1",
    ),
    *(
        b"GET /livez",
        b"GET http://x:99999999/livez HTTP/1.1",
        b"GET /livez#x HTTP/1.1",
        b"HTTP/1.1 200 OK",
        b"BREW / HTCPCP/1.0",
    ),
)
_BROKEN_CHUNKS = (
    *(
        b"zz\r\nx\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"fffffffffffffffff\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"5;",
    ),
    *(
        b"1;" + b"e" * 5000 + b"\r\nx\r\n0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"0\r\n" + b"t: " + b"u" * 50_000,
        b"0x1\r\nx\r\n0\r\n\r\n",
    ),
    *(b"1\nx\n0\n\n", b"\r\n", b"10000000\r\n", b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n", b" 1 \r\nx\r\n0\r\n\r\n"),
)
_METHODS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PROPFIND", b"QUERY")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of the gateway that is asked. token: of an admin. key: an API key, if the data port asks for one.

    flags: the document of all flags. ids: path -> the id that its {id} may take.
    """

    token: str
    key: str | None
    flags: Mapping[str, Any]
    ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attack:
    """What one connection sends. pieces: as so many segments. is_http: it is one request, and gets one answer."""

    target: Target
    method: str
    pieces: tuple[bytes, ...]
    ending: Ending
    is_http: bool

    def __repr__(self) -> str:
        sent = b"".join(self.pieces)
        shown = sent if len(sent) <= 1500 else sent[:1000] + b" ... " + sent[-400:]
        return f"{self.target} {self.ending}, {len(sent)} bytes in {len(self.pieces)} pieces: {shown!r}"


def attacks(target: Target, facts: Facts) -> st.SearchStrategy[Attack]:
    """Any attack on *target*."""
    return st.one_of(_requests(target, facts), _requests(target, facts), _broken(target, facts))


@st.composite
def _requests(draw: Draw, target: Target, facts: Facts) -> Attack:
    """One request that is right as HTTP."""
    method = target.method.encode()
    if (target.method, target.path) not in WHOLE and draw(st.sampled_from((False,) * 9 + (True,))):
        method = draw(st.sampled_from(_METHODS))
    payload = draw(_payload(target, facts))
    lines = [b"%b: %b" % header for header in draw(_headers(target, facts))]
    lines += [f"{name}: {value}".encode() for name, value in payload.headers]
    body = payload.body
    if draw(st.booleans()) or not body:
        lines.append(b"content-length: %d" % len(body))
    else:
        body = _chunked(body, draw(st.sampled_from((1, 7, 100, 10_000))))
        lines.append(b"transfer-encoding: chunked")
    version = draw(st.sampled_from((b"1.1",) * 9 + (b"1.0",))) if lines[-1].startswith(b"content") else b"1.1"
    start = b"%b %b HTTP/%b" % (method, draw(_paths(target, facts)), version)
    data = b"\r\n".join((start, b"host: x", *draw(st.permutations(lines)), b"", b"")) + body
    ending: Ending = draw(st.sampled_from(("answer",) * 9 + ("leave",)))
    return Attack(target, method.decode(), draw(_cut(data)), ending, is_http=ending == "answer")


@st.composite
def _broken(draw: Draw, target: Target, facts: Facts) -> Attack:
    """Bytes that may be anything, mostly close to a request."""
    is_whole = (target.method, target.path) in WHOLE
    payload = Payload(b"{}") if is_whole else draw(_payload(target, facts))
    start = b"%b %b HTTP/1.1" % (target.method.encode(), draw(_paths(target, facts)))
    if draw(st.sampled_from((True, False, False))):
        start = draw(st.sampled_from(_BROKEN_STARTS))
    lines = [b"%b: %b" % header for header in draw(_headers(target, facts))]
    lines += [f"{name}: {value}".encode() for name, value in payload.headers]
    body = payload.body
    framing = draw(st.sampled_from(("length", "too long", "too short", "chunks", "none")))
    if framing == "chunks":
        lines.append(b"transfer-encoding: chunked")
        body = draw(st.sampled_from(_BROKEN_CHUNKS))
    elif framing != "none":
        off = {"length": 0, "too long": 5, "too short": -1}[framing]
        lines.append(b"content-length: %d" % max(0, len(body) + off))
    for line in draw(st.lists(st.sampled_from(_BROKEN_LINES), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    data = b"\r\n".join((start, b"host: x", *lines, b"", b"")) + body
    if not is_whole:
        data = _torn(draw, data)
    data *= draw(st.sampled_from((1, 1, 1, 2, 5) if len(data) > 500 else (1, 1, 1, 2, 500)))
    endings: Sequence[Ending] = ("shut",) * 15 + ("leave",) * 4 + ("silence",)
    if target.port == "control":  # which has no clocks: it is not for strangers
        endings = endings[:-1]
    return Attack(target, target.method, draw(_cut(data)), draw(st.sampled_from(endings)), is_http=False)


def _payload(target: Target, facts: Facts) -> st.SearchStrategy[Payload]:
    if target.method in ("GET", "DELETE"):
        return st.sampled_from((Payload(b""), Payload(b""), Payload(b"{}")))
    return payloads(target, facts.flags if (target.method, target.path) in WHOLE else None)


@st.composite
def _paths(draw: Draw, target: Target, facts: Facts) -> bytes:
    """The path with something in the place of each parameter, and perhaps a query."""
    parts = []
    for part in target.path.split("/"):
        while "{" in part:
            before, _, rest = part.partition("{")
            name, _, after = rest.partition("}")
            value = draw(st.sampled_from(_values(target, name, facts) * 4 + _ODD_SEGMENTS)).decode("latin-1")
            part = before + value.replace("{", "(") + after
        parts.append(part)
    path = "/".join(parts).encode("latin-1")
    query = draw(st.sampled_from(_QUERIES if target.port == "control" else (b"", b"", b"?a=b", b"?%00")))
    return path + bytes(query)


_QUERIES = (
    *(b"",) * 12,
    *(
        b"?dryRun=true",
        b"?dryRun=true",
        b"?dryRun=1",
        b"?limit=5",
        b"?limit=0",
        b"?limit=%D9%A3",
        b"?after=99999999999999999",
    ),
    *(b"?after=-1&limit=10000", b"?state=pending", b"?digest=x", b"?&&=&", b"?%ff=%00", b"?limit=5&limit=x"),
)
_VERBS = (
    b"pause",
    b"resume",
    b"promote",
    b"abort",
    b"rollback",
    b"retry",
    b"approve",
    b"reject",
    b"apply",
    b"acknowledge",
)


def _values(target: Target, name: str, facts: Facts) -> tuple[bytes, ...]:
    """What a parameter may be; nothing here names what the innocents rely on, unless it is only asked."""
    models = (b"maple", b"maple", b"oak", b"iris", b"ir%69s")
    known = {
        "model": models if target.port == "data" else models[:3],
        "version": (b"1", b"2", b"9"),
        "key": (b"maple.route", b"maple.sampling", b"maple.cache", b"maple.shadow", b"maple.batching", b"oak.route"),
        "verb": _VERBS,
        "id": (facts.ids.get(target.path, "nobody").encode(),),
    }
    return known.get(name, (b"x", b"1"))


@st.composite
def _headers(draw: Draw, target: Target, facts: Facts) -> list[Header]:
    """Those that a request of this kind needs, mostly, and some others."""
    mostly = st.sampled_from((True,) * 14 + (False,))
    found = [header for header in _needed(target, facts) if draw(mostly)]
    for name, values in draw(st.lists(st.sampled_from(_MEANING), max_size=3)):
        if name not in (known for known, _ in found):
            found.append((name, draw(st.sampled_from(values * 3 + _ODD_VALUES))))
    return found


def _needed(target: Target, facts: Facts) -> list[Header]:
    if target.port == "data":
        return [] if facts.key is None else [(b"x-api-key", facts.key.encode())]
    found = [(b"authorization", b"Bearer " + facts.token.encode())]
    if target.method != "GET":
        found += [(b"if-match", b"*"), (b"x-change-reason", b"fuzz")]
    return found


def _chunked(body: bytes, size: int) -> bytes:
    size = max(size, len(body) // 200)
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def _torn(draw: Draw, data: bytes) -> bytes:
    """Some bytes of it are others, are gone, or are there again."""
    for _ in range(draw(st.sampled_from((0, 0, 1, 2, 8)))):
        at = draw(st.integers(0, max(0, min(len(data), 2000) - 1)))
        how = draw(st.integers(0, 3))
        if how == 0:
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + data[at + draw(st.integers(1, 8)) :]
        elif how == 2:
            data = data[:at] + data[at : at + 20] + data[at:]
        else:
            data = data[:at]
    return data


@st.composite
def _cut(draw: Draw, data: bytes) -> tuple[bytes, ...]:
    """The data as up to four pieces, which are sent apart."""
    cuts = sorted(draw(st.lists(st.integers(0, max(0, min(len(data), 3000))), max_size=3)))
    ends = [*cuts, len(data)]
    return tuple(data[start:stop] for start, stop in zip([0, *cuts], ends, strict=True) if stop > start)


def is_known(target: Target) -> bool:
    """Whether somebody has told what a right body of the target looks like, or it takes none."""
    return target.method in ("GET", "DELETE") or (target.method, target.path) in SEEDS or "{verb}" in target.path
