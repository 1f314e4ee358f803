"""The reader of heads: whatever it reads, the HTTP parser reads in the same way; all else it leaves alone."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.codecs.native import NativeCodec
from gateway.serving.heads import HeadReader
from gateway.serving.target import Target

MIB = 2**20
NATIVE = NativeCodec()
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
# Larger bodies are not sent through the parser: its word on their length is enough.
MAX_BODY_BYTES = 4096


def find_target(raw_path: bytes) -> Target | None:
    """The end of a path is its model; paths elsewhere are no predictions."""
    return Target(NATIVE, raw_path.decode("latin-1"), None) if raw_path.startswith(b"/predict/") else None


class Message:
    """One request as the HTTP parser tells it."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.method = b""
        self.version = ""
        self.keeps_alive = False
        self.upgrades = False
        self.body = b""
        self.is_whole = False


class Parsed:
    """The requests that the HTTP parser finds in *data*. Raises HttpParserError as it does."""

    def __init__(self, data: bytes) -> None:
        self.messages: list[Message] = []
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.messages.append(Message())

    def on_url(self, url: bytes) -> None:
        self.messages[-1].url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.messages[-1].headers.append((name, value))

    def on_headers_complete(self) -> None:
        message = self.messages[-1]
        message.method, message.version = self._parser.get_method(), self._parser.get_http_version()
        message.keeps_alive, message.upgrades = self._parser.should_keep_alive(), self._parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].is_whole = True


def check(reader: HeadReader, sent: bytes) -> bool:
    """Whether *reader* takes the head at the start of *sent*; if so, the parser must have read the same."""
    head = (sent + b"\r\n\r\n").partition(b"\r\n\r\n")[0]
    found = reader.read(head)
    if found is None:
        return False
    target, headers, length = found
    is_short = length <= MAX_BODY_BYTES
    body = b"b" * length if is_short else b""
    first, *others = Parsed(head + b"\r\n\r\n" + body + (NEXT if is_short else b"")).messages
    assert (first.method, first.version) == (b"POST", "1.1")
    assert first.url.decode("latin-1") == target.model
    told = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in first.headers]
    assert told == list(headers.items())
    assert first.keeps_alive
    assert not first.upgrades
    assert int(headers["content-length"]) == length
    assert not {"transfer-encoding", "expect", "upgrade"} & headers.keys()
    if is_short:
        assert first.body == body
        assert first.is_whole
        (second,) = others
        assert second.url == b"/next"
    return True


TOKENS = ["host", "Host", "content-type", "x-request-id", "X-Targeting-Key", "accept", "x", "~'*", "traceparent"]
NASTY_NAMES = ["", " host", "host ", "ho st", "hö", "x\x00", "x:", "(x)", "x\t", "content-length ", "Content_Length"]
FRAMING = ["content-length", "Content-Length", "CONTENT-LENGTH", "transfer-encoding", "Transfer-Encoding", "connection",
           "Connection", "expect", "upgrade", "TE", "trailer", "keep-alive", "proxy-connection",
           "http2-settings"]  # fmt: skip
VALUES = ["x", "a b", "a\tb", "", "application/json", "é", "ünï", "\xff", "a:b", "a: b", '"q"', "0", "5", "17", "4096"]
NASTY_VALUES = [" x", "x ", "\tx", "x\t", "a\x00b", "a\rb", "a\nb", "a\r\n b", "a\r\n\tb", "a\x7fb", "a\x01b", "\x0b",
                "+5", "-1", "0x5", "5 ", "5,5", "5, 5", "007", "1_0", "5.0", "\xb2", "9" * 10, "9" * 11, "9" * 30,
                "chunked", "Chunked", "identity", "gzip, chunked", "chunked\x0b", "keep-alive", "Keep-Alive", "close",
                "keep-alive, close", "upgrade", "Upgrade, HTTP2-Settings", "100-continue", "h2c", "websocket",
                "y" * 600]  # fmt: skip
REQUEST_LINES = ["POST /predict/iris HTTP/1.1", "POST /predict/ir%69s?a=b HTTP/1.1", "POST /predict/a;b=c,d HTTP/1.1",
                 "post /predict/iris HTTP/1.1", "POST  /predict/iris HTTP/1.1", "POST /predict/iris  HTTP/1.1",
                 "POST /predict/iris HTTP/1.0", "POST /predict/iris HTTP/2.0", "POST /predict/iris HTTP/1.10",
                 "POST /predict/iris http/1.1", "POST /predict/iris", "POST * HTTP/1.1", "POST /predict/\xe9 HTTP/1.1",
                 "POST http://h/predict/iris HTTP/1.1", "POST /predict/ir\tis HTTP/1.1", "POST /predict/a#b HTTP/1.1",
                 "GET /predict/iris HTTP/1.1", "\r\nPOST /predict/iris HTTP/1.1", "POST /predict/iris HTTP/1.1 ",
                 "POST\t/predict/iris HTTP/1.1", "POST /predict/iris\x0b HTTP/1.1", "POST //predict/iris HTTP/1.1",
                 "XPOST /predict/iris HTTP/1.1", "POST /predict/" + "y" * 600 + " HTTP/1.1"]  # fmt: skip
LINES = st.builds(
    lambda name, colon, value: name + colon + value,
    st.sampled_from(TOKENS) | st.sampled_from(NASTY_NAMES) | st.sampled_from(FRAMING) | st.text("aB-_.!~", max_size=4),
    st.sampled_from([": ", ": ", ": ", ":", " : ", ":  ", ":\t", "", "::"]),
    st.sampled_from(VALUES) | st.sampled_from(NASTY_VALUES) | st.text(st.characters(max_codepoint=255), max_size=6),
)
GOOD_LINES = st.builds("{}: {}".format, st.sampled_from(TOKENS), st.sampled_from(VALUES[:10]))
LENGTH_LINES = st.builds("{}: {}".format, st.sampled_from(FRAMING[:3]), st.integers(0, 5000))


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is mostly right: at most some lines of it are not, and at most some bytes are other ones."""
    first = draw(st.sampled_from(REQUEST_LINES[:3]) | st.sampled_from(REQUEST_LINES))
    lines = draw(st.lists(GOOD_LINES, max_size=4)) + draw(st.lists(LENGTH_LINES, min_size=0, max_size=2))
    lines += draw(st.lists(LINES, max_size=2))
    head = "\r\n".join([first, *draw(st.permutations(lines))]).encode("latin-1")
    for place, cut, put in draw(
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.binary(max_size=2)), max_size=1)
    ):
        head = head[:place] + put + head[place + cut :]
    return head


@settings(max_examples=500, deadline=None)
@given(sent=st.lists(heads(), min_size=1, max_size=4))
@example(sent=[b"POST /predict/iris HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6"])
@example(sent=[b"POST /predict/iris HTTP/1.1\r\ncontent-length: 5\r\nContent-Length: 5"])
@example(sent=[b"POST /predict/iris HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked"])
@example(sent=[b"POST /predict/iris HTTP/1.1\r\ncontent-length: 5\r\nx: a\r\n content-length: 6"])
def test_what_the_reader_takes_the_parser_reads_in_the_same_way(sent: list[bytes]) -> None:
    """Each twice, by one reader: what it remembers of a head must not change what it says of another."""
    reader = HeadReader(find_target)
    for head in sent + sent:
        check(reader, head)


CURL = b"POST /predict/iris HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
PYTHON = (
    b"POST /predict/iris?x=1 HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: python-httpx/0.28\r\nX-Targeting-Key: user-\xc3\xbc\r\n"
)


@pytest.mark.parametrize("start", [CURL, PYTHON], ids=["curl", "httpx"])
def test_heads_of_usual_clients_are_read(start: bytes) -> None:
    reader = HeadReader(find_target)
    for length in (0, 5, 4000, 99999):
        head = start + b"Content-Length: %d\r\nContent-Type: application/json" % length
        assert check(reader, head)
        assert check(reader, head)


@pytest.mark.parametrize(
    "line",
    [
        "content-length: 6", "Content-Length: 5", "transfer-encoding: chunked", "Transfer-Encoding: identity",
        "expect: 100-continue", "connection: close", "connection: keep-alive, close", "connection: upgrade",
        "upgrade: h2c", "te: trailers", "trailer: x", "keep-alive: timeout=5", "proxy-connection: close",
        "http2-settings: AAMAAABk", "host : x", " folded", "x: a\x00b", "x: a\x7f", "x: a\r", "x: a\rb",
        "x: a\rb: c", "x: a ", ": x",
        "no colon", "Once: again", "x:  two", "y: a\nb: c",
    ],
)  # fmt: skip
def test_one_line_that_is_the_parsers_business_makes_the_whole_head_so(line: str) -> None:
    reader = HeadReader(find_target)
    start = b"POST /predict/iris HTTP/1.1\r\nonce: 1\r\ncontent-length: 5"
    assert check(reader, start)
    assert not check(reader, start + b"\r\n" + line.encode("latin-1"))
    assert not check(reader, start.replace(b"once: 1", line.encode("latin-1") + b"\r\nonce: 1"))


@pytest.mark.parametrize("length", ["", "+5", "-5", "0x5", "5,5", "5 5", "1_0", "\xb2", "9" * 11, "9" * 40, "5\t"])
def test_a_length_that_is_no_plain_number_is_the_parsers_business(length: str) -> None:
    head = f"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: {length}".encode("latin-1")
    assert not check(HeadReader(find_target), head)


def test_a_head_without_a_length_or_of_very_many_lines_is_the_parsers_business() -> None:
    reader = HeadReader(find_target)
    assert not check(reader, b"POST /predict/iris HTTP/1.1\r\nhost: x")
    many = b"\r\n".join(b"x-%d: 1" % number for number in range(80))
    assert not check(reader, b"POST /predict/iris HTTP/1.1\r\ncontent-length: 5\r\n" + many)


@pytest.mark.parametrize(
    ("varies", "max_bytes"),
    [("short values", 16 * MIB), ("long values", 2 * MIB), ("paths", 16 * MIB), ("long paths", 2 * MIB)],
)
def test_heads_that_never_repeat_do_not_fill_the_memory(varies: str, max_bytes: int) -> None:
    """25,000 of them would hold 25 MiB and more if all were kept."""
    reader = HeadReader(find_target)
    padding = b"y" * (2000 if varies.startswith("long") else 450)
    tracemalloc.start()
    try:
        for number in range(25_000):
            head = b"POST /predict/%b HTTP/1.1\r\nhost: x\r\nx-trace: %b\r\ncontent-length: 5"
            unique = b"%d-%b" % (number, padding)
            found = reader.read(head % ((b"iris", unique) if "values" in varies else (unique, b"1")))
            assert found is not None
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


def test_heads_that_repeat_are_read_the_same_after_many_that_do_not() -> None:
    reader = HeadReader(find_target)
    head = CURL + b"content-length: 5"
    before = reader.read(head)
    for number in range(9000):
        reader.read(b"POST /predict/m%d HTTP/1.1\r\nx: %d\r\ncontent-length: %d" % (number, number, number))
    assert reader.read(head) == before
    assert all(a == b for a, b in pairwise([reader.read(head) for _ in range(3)]))
