"""A real gateway for a test: `sluicegate serve` in a process of its own, on ports that the system picked."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

Found = TypeVar("Found")
ChildRole = Literal["worker", "control", "monitor", "follower", "exporter"]
# Section -> key -> value, as in the settings file.
SettingsTable = Mapping[str, Mapping[str, str | int | float]]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
_POLL_S = 0.02


def eventually(check: Callable[[], Found | None], what: str, *, timeout_s: float = 60.0) -> Found:
    """Ask *check* again and again until it gives something true, and return that.

    Raises AssertionError naming *what* if *timeout_s* passes first. An AssertionError, OSError or httpx.HTTPError of
    *check* counts as "not yet".
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if found := check():
                return found
            last = found
        except (AssertionError, OSError, httpx.HTTPError) as error:
            last = error
        time.sleep(_POLL_S)
    raise AssertionError(f"{what}: not within {timeout_s:g} s; last seen: {last!r}")


def is_running(pid: int) -> bool:
    """Whether a process of that id exists and is more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def child_processes(gateway: LiveGateway) -> list[int]:
    """The pids of all children of the supervisor, ready or not, and of what they are made from."""
    return [int(pid) for pid in Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    """What a process calls itself: ``worker-0``, ``template``; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def write_settings(path: Path, settings: SettingsTable) -> None:
    """Write a settings file."""
    lines: list[str] = []
    for section, keys in settings.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    path.write_text("\n".join(lines) + "\n")


def _trust(section: Mapping[str, str | int | float], client: tuple[Path, Path] | None) -> ssl.SSLContext | None:
    """What it takes to speak to a port with these settings; None without TLS."""
    if "tls_certificate" not in section:
        return None
    trust = ssl.create_default_context(cafile=str(section["tls_certificate"]))
    if client is not None:
        trust.load_cert_chain(*client)
    return trust


class LiveGateway:
    """A context manager: entering starts the gateway and waits until all its children are ready; leaving stops it.

    Inside it may be stopped, and started again; with wait=False entering does not wait for readiness.

    models: directory of packages. state: state directory; its parent gets the log, the settings file and the ready
    file, named after the state directory and the role. settings: as in the settings file. data, control: HTTP clients
    of the two ports while it runs; control sends the admin token. client: certificate and key that clients show, where
    a port asks for them. trust, control_trust: what a TLS client of the data port and of the control port needs, None
    without TLS.
    """

    data: httpx.Client
    control: httpx.Client

    def __init__(
        self,
        models: Path,
        state: Path,
        *,
        workers: int = 1,
        role: Literal["all", "serving", "control", "monitor"] = "all",
        settings: SettingsTable | None = None,
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        client: tuple[Path, Path] | None = None,
        wait: bool = True,
    ) -> None:
        self.models = models
        self.state = state
        self._ready_file = state.with_name(f"{state.name}.{role}.ready.json")
        self._log_file = state.with_name(f"{state.name}.{role}.log")
        config = state.with_name(f"{state.name}.{role}.toml")
        self.trust, self.control_trust = (
            _trust((settings or {}).get(port, {}), client) for port in ("server", "control")
        )
        write_settings(config, settings or {})
        self._command = [
            *(sys.executable, "-m", "gateway", "serve", "--role", role, "--config", str(config)),
            *("--models", str(models), "--state", str(state), "--ready-file", str(self._ready_file)),
            *("--host", "127.0.0.1", "--port", "0", "--control-port", "0", "--workers", str(workers)),
            *options,
        ]
        self._environment = {**os.environ, **(environment or {})}
        self._wait = wait
        self._process: subprocess.Popen[bytes] | None = None
        self._started: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start(wait=self._wait)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if kind is None:
            self.stop()
        else:
            print(f"--- log of the gateway ---\n{self.log}", file=sys.stderr)
            self._end()

    def start(self, *, wait: bool = True) -> None:
        """Start the process. wait: until all children are ready; else the caller does that with wait_ready()."""
        assert self._process is None, "this gateway runs already"
        self._ready_file.unlink(missing_ok=True)  # a killed supervisor leaves its own behind
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait for the ready file, then make the HTTP clients."""
        try:
            self._started = eventually(self._look_ready, "the gateway is ready", timeout_s=START_TIMEOUT_S)
        except BaseException:
            print(f"--- log of the gateway ---\n{self.log}", file=sys.stderr)
            self._end()
            raise
        if self._started["data"]:
            self.data = httpx.Client(base_url=self.data_url, timeout=30.0, verify=self.trust or True)
        if self._started["control"]:
            headers = {"authorization": f"Bearer {self.admin_token}"}
            self.control = httpx.Client(
                base_url=self.control_url, headers=headers, timeout=30.0, verify=self.control_trust or True
            )

    def _look_ready(self) -> dict[str, Any] | None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the gateway ended with exit code {self._process.returncode}:\n{self.log}")
        return self.ready if self._ready_file.exists() else None

    @property
    def ready(self) -> dict[str, Any]:
        """The ready file as it is now: addresses, run_dir, and the children that are ready."""
        found: dict[str, Any] = json.loads(self._ready_file.read_text())
        return found

    @property
    def is_ready_file_there(self) -> bool:
        return self._ready_file.exists()

    @property
    def pid(self) -> int:
        """The supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def data_url(self) -> str:
        """``http://127.0.0.1:PORT`` of the data plane; https with a certificate."""
        return str(self._started["data"]["url"])

    @property
    def control_url(self) -> str:
        """``http://127.0.0.1:PORT`` of the control plane; https with a certificate."""
        return str(self._started["control"]["url"])

    @property
    def run_dir(self) -> Path:
        return Path(self._started["run_dir"])

    @property
    def admin_token(self) -> str:
        return (self.state / "admin.token").read_text().strip()

    @property
    def log(self) -> str:
        """All that the gateway wrote to stdout and stderr so far."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def child_pids(self, role: ChildRole) -> dict[int, int]:
        """Slot -> pid of the children of *role* that are ready now."""
        return {child["slot"]: child["pid"] for child in self.ready["children"] if child["role"] == role}

    def signal_child(self, role: ChildRole, slot: int = 0, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one child and return the pid that it went to."""
        pid = self.child_pids(role)[slot]
        os.kill(pid, number)
        return pid

    def wait_replaced(self, role: ChildRole, slot: int, old_pid: int, *, timeout_s: float = 20.0) -> int:
        """Wait until *slot* is filled by a ready process other than *old_pid*, and return its pid."""

        def new_pid() -> int | None:
            pid = self.child_pids(role).get(slot)
            return None if pid == old_pid else pid

        return eventually(new_pid, f"{role} {slot} is replaced", timeout_s=timeout_s)

    def kill(self, role: ChildRole, slot: int = 0) -> int:
        """kill -9 one child, wait until its replacement is ready, and return the new pid."""
        return self.wait_replaced(role, slot, self.signal_child(role, slot))

    def stop(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the gateway as systemd would, and check that it ends with exit code 0."""
        self.signal(number)
        self.wait_stopped()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait_stopped(self, *, exit_code: int = 0) -> None:
        """Wait until the supervisor has ended, and check its exit code."""
        assert self._process is not None
        try:
            found = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._end()
            raise AssertionError(f"the gateway did not stop within {STOP_TIMEOUT_S:g} s:\n{self.log}") from None
        self._end()
        assert found == exit_code, f"the gateway ended with exit code {found}:\n{self.log}"

    def _end(self) -> None:
        """Leave nothing behind, whatever state it is in. Children follow a killed supervisor by themselves."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None
        for client in (getattr(self, "data", None), getattr(self, "control", None)):
            if client is not None:
                client.close()
