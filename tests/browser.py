"""A real browser, headless, that opens a page and tells all that it complained of and asked for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

_INSTALL_IT = "chromium is not installed; on Debian: apt-get install chromium"


def browser_program() -> str:
    """Where Chromium is. Without it the test is skipped; where everything is built (CI is set) it fails."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(_INSTALL_IT)
        pytest.skip(_INSTALL_IT)
    return found


class Tab:
    """One tab, spoken to over a pipe by the DevTools protocol. complaints: errors and warnings of the console, and
    exceptions; requests: every address that was asked for."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._replies = os.fdopen(read_fd, "rb")
        self._calls = os.fdopen(write_fd, "wb")
        self._left = b""
        self._number = 0
        self._session = ""
        self._seen: list[str] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._calls.close()
        self._replies.close()

    def call(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        self._calls.write(json.dumps(message).encode() + b"\0")
        self._calls.flush()
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]

    def open(self, page: Path | str, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Open a file or an address and wait until all of it is there. width, height: of the window, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._seen.clear()
        self.call("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)
        while "Page.loadEventFired" not in self._seen:
            self._next()
        # Whatever was to be loaded or said meanwhile has been, once the page has been painted.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _next(self) -> Mapping[str, Any]:
        while b"\0" not in self._left:
            more = os.read(self._replies.fileno(), 1 << 20)
            assert more, "the browser has ended"
            self._left += more
        raw, _, self._left = self._left.partition(b"\0")
        event: dict[str, Any] = json.loads(raw)
        if "method" in event:
            self._note(event["method"], event["params"])
        return event

    def _note(self, method: str, told: Mapping[str, Any]) -> None:
        self._seen.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(told["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with nothing in it; *profile* is an empty directory of its own."""
    (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
    options = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
        f"--user-data-dir={profile}", "--remote-debugging-pipe",
    )  # fmt: skip
    # The protocol is spoken on descriptors 3 and 4. They are moved out of the way first, since each may be the other.
    moved = f"exec {its_in + 100}<&{its_in} {its_out + 100}>&{its_out}; "
    placed = f'exec "$@" 3<&{its_in + 100} 4>&{its_out + 100}'
    process = subprocess.Popen(
        ["bash", "-c", moved + placed, "bash", browser_program(), *options],
        pass_fds=(its_in, its_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        with closing(Tab(our_in, our_out)) as tab:
            yield tab
            tab.call("Browser.close")
            process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
