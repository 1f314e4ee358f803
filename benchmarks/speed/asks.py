"""What is asked: bodies of predictions, as a script for wrk or as whole requests for the open-loop generator."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

KEYS = 1000  # targeting keys that take turns
DISTINCT = 4_000_000  # first values of a row that differ as 32-bit floats: 4.000000 to 7.999999

FIRST = b"5.123456"  # what an always new number is put in place of
OIP, ROWS = "oip", "rows"

Row = Sequence[float]


@dataclass(frozen=True, slots=True)
class Ask:
    """One kind of request.

    bodies: sent in turn. Where one holds FIRST, each request has another number there. keyed: with a targeting key.
    """

    path: str
    bodies: tuple[bytes, ...]
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    keyed: bool = True

    @property
    def unique(self) -> bool:
        """Whether no two requests are the same."""
        return FIRST in self.bodies[0]


def one_row(path: str, row: Row, *, unique: bool = True, keyed: bool = True, style: str = OIP) -> Ask:
    """A row as JSON, always the same, or with a first value that is new each time.

    style: `oip`, the Open Inference Protocol; `rows`, an object with a list of rows.
    """
    first = json.loads(FIRST) if unique else row[0]
    return Ask(path, (body([[first, *row[1:]]], style),), keyed=keyed)


def many_rows(path: str, rows: Sequence[Row], count: int, *, binary: bool) -> Ask:
    """Requests of *count* rows each of the Open Inference Protocol, as JSON or as a binary tensor."""
    packs = [list(rows[start : start + count]) for start in range(0, len(rows) - count + 1, count)]
    if not binary:
        return Ask(path, tuple(body(pack, OIP) for pack in packs))
    blobs = [struct.pack(f"<{count * len(pack[0])}f", *(value for row in pack for value in row)) for pack in packs]
    tensor = {"name": "input", "shape": [count, len(rows[0])], "datatype": "FP32",
              "parameters": {"binary_data_size": len(blobs[0])}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = (("content-type", "application/octet-stream"), ("inference-header-content-length", str(len(head))))
    return Ask(path, tuple(head + blob for blob in blobs), headers)


def body(rows: Sequence[Row], style: str) -> bytes:
    """Rows as JSON."""
    if style == ROWS:
        return json.dumps({"inputs": [list(row) for row in rows]}, separators=(",", ":")).encode()
    data = [value for row in rows for value in row]
    tensor = {"name": "input", "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def script(ask: Ask, base_url: str, start: int) -> str:
    """A wrk script: each request is joined from parts that were made before, and figures are printed at the end.

    start: the number of the first request, so that two runs do not ask the same.
    """
    listed = ",\n".join("{" + ", ".join(map(_lua, _pieces(ask, base_url, each))) + "}" for each in ask.bodies)
    gaps = ["three[n % 1000]"] * ask.keyed + ["first(n)"] * ask.unique
    joined = " .. ".join(["r[1]", *(f"{gap} .. r[{index}]" for index, gap in enumerate(gaps, 2))])
    return f"""local requests = {{{listed}}}
local n, count, floor, three = {start % DISTINCT}, #requests, math.floor, {{}}
for i = 0, 999 do three[i] = string.format("%03d", i) end
local function first(n)
  return (4 + floor(n / 1000000)) .. "." .. three[floor(n / 1000) % 1000] .. three[n % 1000]
end
request = function()
  n = (n + 1) % {DISTINCT}
  local r = requests[n % count + 1]
  return {joined}
end
{_DONE}"""


# wrk's own table has no 99.9th percentile, and rounds.
_DONE = """done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('figures {"requests": %d, "duration_us": %d, "errors": %d, "failures": %d, ' ..
    '"p50_us": %d, "p99_us": %d, "p999_us": %d, "max_us": %d}\\n', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.timeout, e.status, latency:percentile(50), latency:percentile(99),
    latency:percentile(99.9), latency.max))
end
"""


def whole(ask: Ask, base_url: str, count: int, start: int) -> list[bytes]:
    """So many requests as they are on the wire, different ones where the ask says so."""
    rendered = []
    for n in range(start, start + count):
        first, *pieces = _pieces(ask, base_url, ask.bodies[n % len(ask.bodies)])
        key, value = b"%03d" % (n % KEYS), b"%d.%06d" % (4 + n % DISTINCT // 1_000_000, n % 1_000_000)
        gaps = [key] * ask.keyed + [value] * ask.unique
        rendered.append(first + b"".join(gap + piece for gap, piece in zip(gaps, pieces, strict=True)))
    return rendered


def _pieces(ask: Ask, base_url: str, body: bytes) -> list[bytes]:
    """The parts of a request around its targeting key and its first value; what is put there has a fixed length."""
    lines = [f"POST {ask.path} HTTP/1.1", f"host: {urlsplit(base_url).netloc}"]
    lines += [f"{name}: {value}" for name, value in (*ask.headers, ("content-length", str(len(body))))]
    head = "\r\n".join(lines).encode() + (b"\r\nx-targeting-key: user-" if ask.keyed else b"\r\n\r\n")
    if ask.keyed:
        return [head, *(b"\r\n\r\n" + body).split(FIRST, 1)]
    first, *rest = body.split(FIRST, 1)
    return [head + first, *rest]


def _lua(piece: bytes) -> str:
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03d}" for byte in piece)
    return '"' + "".join(plain) + '"'
