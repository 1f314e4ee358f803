"""A collector of spans for a test: a real HTTP server in a thread that reads OTLP and answers as told."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it came. kind, status: the numbers of OTLP. begun_ns, ended_ns: Unix time. resource: the sender."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    kind: int
    begun_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    status: int
    message: str
    resource: dict[str, Any]


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _read(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.trace_state,
            span.kind,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            _plain(span.attributes),
            span.status.code,
            span.status.message,
            _plain(sender.resource.attributes),
        )
        for sender in request.resource_spans
        for scope in sender.scope_spans
        for span in scope.spans
    ]


class Collector:
    """A context manager. port: 0 picks a free one. paths, headers: of what came."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.paths: set[str] = set()
        self.headers: list[dict[str, str]] = []
        collector = self

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.paths.add(self.path)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.spans += _read(body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Door)
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, trace_id: str) -> list[Span]:
        """The spans of a trace, in the order of their ends."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.ended_ns)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="collector", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
