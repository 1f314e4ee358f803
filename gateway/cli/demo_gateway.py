"""The demo's gateway: `sluicegate serve` in a process of its own, and its admin API as an operator's script uses it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gateway import settings
from gateway.admin_port import ControlSettings
from gateway.cli.remote import Remote, RemoteFailed
from gateway.errors import CannotStart, GatewayError, UnknownModel
from gateway.settings import ENVIRONMENT_PREFIX

WORKERS = 2
DEFAULT_PORTS = (8080, 8081)
ANY_PORTS = (0, 0)
# Drift is judged by the latest rows of each version: few enough that some seconds of traffic fill the window anew.
WINDOW_ROWS = 400
MONITOR_POLL_S = 0.5

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 40.0
_POLL_S = 0.05
_LOG_LINES_SHOWN = 20
_SAMPLE_LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Found = TypeVar("Found")


class DemoFailed(GatewayError):
    """The demo cannot go on; the message says why."""

    code = "demo_failed"


def until(check: Callable[[], Found | None], timeout_s: float) -> Found | None:
    """What *check* gives as soon as it is true; None if *timeout_s* passes first."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if found := check():
            return found
        if time.monotonic() > deadline_s:
            return None
        time.sleep(_POLL_S)


def choose_ports() -> tuple[int, int]:
    """The gateway's own default ports if both are free, else any."""
    for port in DEFAULT_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections of an earlier run
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return ANY_PORTS
    return DEFAULT_PORTS


class DemoGateway:
    """A context manager: entering starts the gateway and waits until it is ready; leaving ends all its processes."""

    def __init__(self, directory: Path, models: Path, ports: tuple[int, int]) -> None:
        self.state = directory / "state"
        self.log_file = directory / "gateway.log"
        self._config = directory / "sluicegate.toml"
        self._ready_file = directory / "ready.json"
        self._models = models
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: Remote | None = None
        self._exits = contextlib.ExitStack()
        self.data_url = ""
        self.control_url = ""

    def __enter__(self) -> Self:
        self._config.write_text(settings.to_toml(self._settings()), encoding="utf-8")
        # -P: a file in the current directory must not pass for a module.
        command = [sys.executable, "-P", "-m", "gateway", "serve"]
        command += ["--config", str(self._config), "--ready-file", str(self._ready_file)]
        # The settings file alone decides. A session of its own: Ctrl-C is for the demo, which then ends the gateway.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            if until(self._is_ready, _START_TIMEOUT_S) is None:
                raise DemoFailed(f"the gateway was not ready within {_START_TIMEOUT_S:g} s:\n{self.log_tail()}")
        except BaseException:
            self._end()
            raise
        ready = json.loads(self._ready_file.read_text())
        self.data_url, self.control_url = ready["data"]["url"], ready["control"]["url"]
        self._admin = self._exits.enter_context(Remote(self.control_url, self.token_path.read_text().strip()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()
        self._end()

    @property
    def token_path(self) -> Path:
        return self.state / "admin.token"

    def wait(self) -> int:
        """Wait until the gateway ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def _settings(self) -> settings.Settings:
        port, control_port = self._ports
        return settings.Settings(
            server=settings.ServerSettings(host="127.0.0.1", port=port, workers=WORKERS),
            control=ControlSettings(port=control_port),
            paths=settings.PathSettings(models=self._models, state=self.state),
            sampling=settings.SamplingSettings(rate=1.0),
            monitor=settings.MonitorSettings(poll_s=MONITOR_POLL_S, window_rows=WINDOW_ROWS),
        )

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise CannotStart(f"the gateway ended with exit code {self._process.returncode}:\n{self.log_tail()}")
        return self._ready_file.exists()

    def log_tail(self) -> str:
        """The last lines that the gateway wrote."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    # -- the admin API ---------------------------------------------------------------------------------

    @property
    def admin(self) -> Remote:
        assert self._admin is not None, "the gateway was not started"
        return self._admin

    def change_flag(self, key: str, patch: Mapping[str, Any], reason: str) -> None:
        """Merge *patch* into a flag, based on what it is now. Raises RemoteFailed."""
        path = f"/admin/v1/flags/{key}"
        _flag, etag = self.admin.read(path)
        headers = {"content-type": "application/merge-patch+json", "if-match": etag, "x-change-reason": reason}
        self.admin.call("PATCH", path, body=patch, headers=headers)

    def is_warm(self, model: str, version: str) -> bool:
        """Whether every worker has loaded and warmed a version."""
        models = self.admin.get("/admin/v1/models")["models"]
        versions = next(found["versions"] for found in models if found["model"] == model)
        return any(found["version"] == version and found["warm"] for found in versions)

    def drift(self, model: str) -> dict[str, Any] | None:
        """The monitor's latest report on a model, if there is one yet."""
        try:
            report: dict[str, Any] = self.admin.get(f"/admin/v1/models/{model}/drift")
        except RemoteFailed as error:
            if error.code == UnknownModel.code:
                return None
            raise
        return report

    def metrics(self) -> Metrics:
        return Metrics(self.admin.call("GET", "/metrics").text)


class Metrics:
    """A page of metrics in Prometheus text format."""

    def __init__(self, page: str) -> None:
        self._lines: list[tuple[str, dict[str, str], float]] = []
        for line in page.splitlines():
            match = _SAMPLE_LINE.fullmatch(line)
            if match is not None:
                self._lines.append((match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all values of that name that carry these labels."""
        return sum(value for _labels, value in self.values(name, **labels))

    def values(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """All values of that name that carry these labels, with all their labels."""
        return [(found, value) for own, found, value in self._lines if own == name and labels.items() <= found.items()]

    def buckets(self, name: str, **labels: str) -> dict[str, int]:
        """How many observations of a histogram fell into each bucket, by its upper bound, summed over other labels."""
        up_to: dict[str, float] = {}
        for found, value in self.values(f"{name}_bucket", **labels):
            up_to[found["le"]] = up_to.get(found["le"], 0.0) + value
        counts: dict[str, int] = {}
        before = 0.0
        for bound, value in sorted(up_to.items(), key=lambda item: float(item[0])):
            counts[bound] = int(value - before)
            before = value
        return counts
