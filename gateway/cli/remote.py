"""The control plane as the command line sees it: one HTTP client, and errors that say what to do next."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gateway.errors import GatewayError

if TYPE_CHECKING:
    import ssl

    import httpx
    from rich.table import Table

    from gateway.cli import Subparsers

DEFAULT_URL = "http://127.0.0.1:8081"
TIMEOUT_S = 30.0
_WIDE = 200  # columns of a table that no terminal bounds


class RemoteFailed(GatewayError):
    """The control plane did not do what was asked. code: of its problem document."""

    def __init__(self, message: str, code: str = "remote_failed") -> None:
        super().__init__(message)
        self.code = code


def add_verb(
    verbs: Subparsers, name: str, text: str, run: Callable[[argparse.Namespace], int], *, more: str = ""
) -> argparse.ArgumentParser:
    """A verb that talks to control, with the options that all of those have.

    text: what it does, for the list of verbs, in small letters and without a stop. more: sentences for its own help.
    """
    parser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    parser.add_argument("--json", action="store_true", help="print JSON")
    add = parser.add_argument_group("the control plane").add_argument
    add("--url", metavar="URL", help=f"its address (default: $SLUICEGATE_URL or {DEFAULT_URL})")
    add("--token-file", metavar="FILE", type=Path, help="the file with the token (default: $SLUICEGATE_TOKEN itself)")
    add("--ca", metavar="FILE", help="PEM: whose certificate the port may have (default: $SLUICEGATE_CA, the system's)")
    add("--cert", metavar="FILE", help="PEM: our certificate, if the port asks for one (default: $SLUICEGATE_CERT)")
    add("--key", metavar="FILE", help="PEM: the key of --cert, if it is in another file (default: $SLUICEGATE_KEY)")
    parser.set_defaults(run=run)
    return parser


class Remote:
    """One conversation with the control plane. A context manager; every method raises RemoteFailed."""

    def __init__(self, url: str, token: str, trust: ssl.SSLContext | None = None) -> None:
        """trust: for an https URL, what its certificate is checked with, and ours; None: the system's authorities."""
        import httpx

        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, verify=trust or True)
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise RemoteFailed(f"{url!r} or the token cannot be sent: {error}") from error
        self._url = url

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON at *path*."""
        return self.call("GET", path, query=query).json()

    def read(self, path: str) -> tuple[Any, str]:
        """The JSON at *path* and its ETag."""
        reply = self.call("GET", path)
        return reply.json(), reply.headers.get("etag", "")

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        """Send a request. headers: text, sent as UTF-8."""
        import httpx

        raw = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        content = None if body is None else json.dumps(body).encode()
        try:
            reply = self._client.request(method, path, content=content, headers=raw, params=dict(query or {}))
        except httpx.ConnectError as error:
            raise RemoteFailed(
                f"cannot reach the control plane at {self._url} ({error}); start it with `sluicegate serve`, or name "
                f"another one with --url or SLUICEGATE_URL"
            ) from error
        except httpx.UnsupportedProtocol as error:
            raise RemoteFailed(
                f"{self._url!r} is no address of a control plane; write it like {DEFAULT_URL}"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteFailed(
                f"no answer from the control plane at {self._url}: {error or type(error).__name__}"
            ) from error
        if not reply.is_success:
            raise _failure(reply, self._url)
        stale_s = reply.headers.get("x-flags-stale")
        if stale_s is not None:
            print(f"the flag store cannot be read now; this is {stale_s} s old", file=sys.stderr)
        return reply


def connect(options: argparse.Namespace) -> Remote:
    """The control plane that options and environment name."""
    url = options.url or os.environ.get("SLUICEGATE_URL") or DEFAULT_URL
    token = os.environ.get("SLUICEGATE_TOKEN", "")
    if options.token_file is not None:
        try:
            token = options.token_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RemoteFailed(f"cannot read the token file {options.token_file}: {error}") from error
    return Remote(url, token.strip(), _trust(options) if url.startswith("https:") else None)


def _trust(options: argparse.Namespace) -> ssl.SSLContext | None:
    """What the options and the environment say of certificates; None if they say nothing. Raises RemoteFailed."""
    ca, certificate, key = (
        getattr(options, name) or os.environ.get(f"SLUICEGATE_{name.upper()}") for name in ("ca", "cert", "key")
    )
    if not (ca or certificate or key):
        return None
    if key and not certificate:
        raise RemoteFailed("--key needs --cert: name the certificate that the key is of")
    import ssl  # most control planes are spoken to without

    try:
        trust = ssl.create_default_context(cafile=ca)
        if certificate:
            trust.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:  # also what is no PEM
        shown = ", ".join(name for name in (ca, certificate, key) if name)
        raise RemoteFailed(f"cannot use the certificates in {shown}: {error}") from error
    return trust


def usage(verb: str, message: str) -> NoReturn:
    """End a command whose arguments make no sense."""
    print(f"sluicegate {verb}: {message}", file=sys.stderr)
    raise SystemExit(2)


def read_json(name: str) -> Any:
    """The JSON in a file; ``-`` reads stdin. Raises RemoteFailed."""
    try:
        return json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise RemoteFailed(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise RemoteFailed(f"{name} is not valid JSON: {error}") from error


def moment(unix_s: float | None) -> str:
    """A time as people read it, in UTC; empty for none."""
    return "" if unix_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def people(number: int) -> str:
    """How many people, in words."""
    return "one person" if number == 1 else f"{number} people"


def difference(each: Mapping[str, Any]) -> str:
    """One entry of a ``diff``, in words."""
    old, new = (json.dumps(each[end]) if end in each else "nothing" for end in ("before", "after"))
    return f"{each['path']}: {old} -> {new}"


def print_json(document: Any) -> None:
    """For ``--json``."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Mapping[str, Mapping[str, Any]], rows: Sequence[tuple[str, ...]]) -> None:
    """A table for a person. columns: heading -> options of rich's add_column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table: Table = Table(title=title, title_justify="left", header_style="bold")
    for heading, style in columns.items():
        table.add_column(heading, **style)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def _failure(reply: httpx.Response, url: str) -> RemoteFailed:
    """A reply that is no success, in words for a person."""
    try:
        problem = reply.json()
        detail, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, KeyError, TypeError):
        return RemoteFailed(
            f"{url} answered {reply.status_code}, but not as a Sluicegate control plane does; name that one's address "
            f"with --url or SLUICEGATE_URL (by default it is {DEFAULT_URL})"
        )
    hint = {
        401: ". Send a token with --token-file FILE or SLUICEGATE_TOKEN; the first start of the server wrote one to "
        "admin.token in its state directory",
        412: ". Somebody else changed it since it was read; look at it again before you repeat your change",
    }.get(reply.status_code, "")
    blocking = [blocker(entry) for entry in problem.get("blocking", [])]
    return RemoteFailed("\n  ".join([detail + hint, *blocking]), code)


def blocker(entry: Mapping[str, Any]) -> str:
    """A worker that has not warmed a version, in words."""
    because = f": {entry['reason']}" if entry.get("reason") else ""
    where = f" of {entry['host']}" if entry.get("host") else ""
    return f"worker {entry.get('worker')}{where}: version {entry.get('version')} is {entry.get('state')}{because}"
