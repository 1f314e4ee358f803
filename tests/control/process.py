"""A real control process for a test, without a supervisor: its socket, lifeline and reports belong to the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.live import SettingsTable

STOP_TIMEOUT_S = 20.0
# The receivers of tests are on this machine.
RECEIVERS: SettingsTable = {"webhooks": {"allow_networks": "127.0.0.0/8, ::1"}}

_SCRIPT = """
import json, socket, sys
from pathlib import Path
from gateway import logs
from gateway.control.app import run_control
from gateway.settings import from_plain
models, state, run_dir, settings, socket_fd, lifeline_fd = sys.argv[1:]
logs.set_up("control")
run_control(
    from_plain({"paths": {"models": models, "state": state}, **json.loads(settings)}),
    boot=Path(run_dir).name,
    run_dir=Path(run_dir),
    listener=socket.socket(fileno=int(socket_fd)),
    report=lambda word: print(word, flush=True),
    lifeline_fd=int(lifeline_fd),
)
"""


class ControlProcess:
    """A context manager: entering starts control and waits for its "ready"; leaving checks that SIGTERM ends it with 0.

    The socket stays the same over restarts, as a supervisor's would. import_file: of flags that it shall follow.
    """

    client: httpx.Client

    def __init__(self, models: Path, state: Path, *, settings: SettingsTable | None = None) -> None:
        self.settings = {
            **RECEIVERS,
            **(settings or {}),
        }  # section -> key -> value; may be changed between stop and start
        self.models = models
        self.state = state
        self.run_dir = state / "run" / "boot-1"
        self._log_path = state.with_name(f"{state.name}.control.log")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._process: subprocess.Popen[str] | None = None
        self._lifeline: int | None = None

    def __enter__(self) -> Self:
        self.start()
        self.client = self.client_as(self.admin_token)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.stop()
            else:
                print(f"--- log of control ---\n{self.log}", file=sys.stderr)
        finally:
            if self._process is not None:
                self.kill()
            self.client.close()
            self._listener.close()

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    @property
    def admin_token(self) -> str:
        return (self.state / "admin.token").read_text().strip()

    @property
    def log(self) -> str:
        return self._log_path.read_text() if self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def client_as(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20.0)

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        read_end, self._lifeline = os.pipe()
        fds = (self._listener.fileno(), read_end)
        arguments = (self.models, self.state, self.run_dir, json.dumps(self.settings), *fds)
        metrics_dir = self.run_dir / "metrics"
        metrics_dir.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, *map(str, arguments)],
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)},
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=fds,
                text=True,
            )
        os.close(read_end)
        self.wait_report("ready")

    def wait_report(self, word: str) -> None:
        """Wait until the process reports *word*."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"control ended without saying {word!r}:\n{self.log}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it with a signal and check that it leaves with exit code 0."""
        assert self._process is not None
        self._process.send_signal(number)
        self.wait_stopped()

    def cut_lifeline(self) -> None:
        """What the process sees when its supervisor dies."""
        assert self._lifeline is not None
        os.close(self._lifeline)
        self._lifeline = None

    def wait_stopped(self) -> None:
        """Wait for the end and check the exit code."""
        assert self._process is not None
        code = self._process.wait(STOP_TIMEOUT_S)
        self._forget()
        assert code == 0, f"control ended with exit code {code}:\n{self.log}"

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        if self._lifeline is not None:
            self.cut_lifeline()

    # -- what a worker would do ---------------------------------------------------------------

    def write_status(
        self, models: Mapping[str, Mapping[str, str]], *, slot: int = 0, age_s: float = 0.0, boot: str = "boot-1"
    ) -> None:
        """Write a status document as a worker would. models: model -> version -> state, or "state: reason"."""
        document = {
            "schema": 1,
            "slot": slot,
            "pid": os.getpid(),
            "boot": boot,
            "written_at": time.time() - age_s,
            "revision": 1,
            "models": {
                model: {
                    "route_revision": 1,
                    "adopted_revision": 1,
                    "pending_revision": None,
                    "versions": {version: _version(words) for version, words in versions.items()},
                }
                for model, versions in models.items()
            },
        }
        path = self.state / "run" / boot / "status" / f"worker-{slot}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(document))
        draft.replace(path)

    # -- what an operator would do ------------------------------------------------------------

    def put(self, key: str, flag: Mapping[str, Any], *, etag: str | None = None, **query: str) -> httpx.Response:
        """Put a flag; etag None creates it."""
        based_on = {"if-none-match": "*"} if etag is None else {"if-match": etag}
        headers = {**based_on, "x-change-reason": "a test"}
        return self.client.put(f"/admin/v1/flags/{key}", json=flag, headers=headers, params=query)

    def patch(self, key: str, change: Mapping[str, Any], *, etag: str | None = None, **query: str) -> httpx.Response:
        """Merge *change* into a flag; etag None takes the one it has now."""
        etag = etag or self.etag(key)
        headers = {"if-match": etag, "x-change-reason": "a test"}
        return self.client.patch(f"/admin/v1/flags/{key}", json=change, headers=headers, params=query)

    def etag(self, key: str) -> str:
        return self.client.get(f"/admin/v1/flags/{key}").headers["etag"]


def _version(words: str) -> dict[str, str]:
    state, _, reason = words.partition(": ")
    return {"state": state, "reason": reason, "digest": "d"}


def route(default: str = "stable", targeting: Any = None, **variants: str) -> dict[str, Any]:
    """A route as flagd JSON; variants by keyword, stable 1 and canary 2 if none are given."""
    plain = {"state": "ENABLED", "variants": variants or {"stable": "1", "canary": "2"}, "defaultVariant": default}
    return plain if targeting is None else {**plain, "targeting": targeting}


def split(canary: int) -> dict[str, Any]:
    """A targeting that gives *canary* of 100 to the variant of that name."""
    return {"fractional": [["canary", canary], ["stable", 100 - canary]]}


@contextlib.contextmanager
def process_in(root: Path) -> Iterator[ControlProcess]:
    """A control process with nothing yet, in a folder of its own."""
    (root / "models").mkdir()
    with ControlProcess(root / "models", root / "state") as process:
        yield process
