"""The template: a process that has imported what workers run on, and forks children when the supervisor asks for them.

Imports are most of a child's start. Here they are made once per boot, by a process that was executed afresh, has one
thread and does nothing else; its children begin where that ends. Each is forked twice, so that it is the supervisor's
own child, whose end it sees as of any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway import children, orphans

_READY = b"ready"
_UNFIT = b"unfit"  # it must not fork: it has threads, which do not survive that
# How long children wait for a template that imports, and the supervisor for one that forks, before they do without.
_WARM_S = 30.0
_FORK_S = 2.0
# Between the death of a template and the next one, doubled with each death up to a bound.
_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
_GO = b"go"

# numpy comes with a thread per processor for products of large matrices, which no child makes.
_OWN_THREADS = {"OPENBLAS_NUM_THREADS": "1"}

_log = logging.getLogger(__name__)


class Forked:
    """A child that a template made. Speaks like subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # else its number may be somebody else's by now
            os.kill(self.pid, number)


class Template:
    """The supervisor's end of it, used by its thread alone; times are of one monotonic clock, in seconds.

    environment: ours; the attribute of that name is that of all children. inherited: descriptors that all of them have,
    under the same numbers.
    """

    def __init__(self, environment: Mapping[str, str], inherited: Sequence[int]) -> None:
        self.environment = {**_OWN_THREADS, **environment}
        self._inherited = inherited
        self._selector: selectors.BaseSelector | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_ready = False
        self._start_at_s = math.inf
        self._warm_by_s = math.inf
        self._pause_s = _PAUSE_S

    def begin(self, selector: selectors.BaseSelector) -> None:
        """Let there be one from the next step on. What it says makes *selector* give `hear` as data."""
        if orphans.adopt():
            self._selector = selector
            self._start_at_s = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_warming(self) -> bool:
        """Whether it will be ready soon, so that it is worth to wait with a start."""
        return self._process is not None and not self._is_ready

    @property
    def due_s(self) -> float:
        """When `step` has something to do that no event tells of."""
        if self._process is None:
            return self._start_at_s
        return math.inf if self._is_ready else self._warm_by_s

    def step(self, now_s: float) -> None:
        """Do what is due: start it, bury it, give it up."""
        if self._process is not None and (self._process.poll() is not None or now_s >= self.due_s):
            self._lose(now_s)
        if self._process is None and now_s >= self._start_at_s:
            self._start(now_s)

    def hear(self) -> None:
        """Read what it says once it has imported all. Its end is seen by the next step."""
        if self._socket is None:
            return  # it was ended when it had just said something
        word = b""
        with contextlib.suppress(OSError):
            word = self._socket.recv(100)
        if word == _UNFIT:
            _log.warning("a library starts threads when it is imported: each child imports all by itself")
            self.end()
            return
        self._is_ready = word == _READY
        if self._is_ready:
            _log.info("template is ready", extra={"pid": self.pid})
        else:
            self._forget_socket()
            self._warm_by_s = -math.inf

    def renew(self, now_s: float) -> None:
        """Replace it by one that imports everything anew, as it is on the disk now."""
        if self._process is not None:
            self.end()
            self._start_at_s = now_s

    def end(self) -> None:
        """End it; there will be none any more. It holds nothing that could be lost."""
        self._start_at_s = math.inf
        self._is_ready = False
        self._forget_socket()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def fork(self, spec_fd: int, descriptors: Mapping[str, int], now_s: float) -> Forked | None:
        """Make a child with the orders in *spec_fd*. None if that cannot be done: then it is to be started plainly.

        descriptors: of the fields of its ChildSpec that are some; the child puts its own numbers there.
        """
        if not self._is_ready or self._socket is None:
            return None
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        try:
            message = json.dumps(list(descriptors)).encode()
            socket.send_fds(self._socket, [message], [spec_fd, go_read, *descriptors.values()])
            pid = int(self._socket.recv(100))
            if not pid:
                return None
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises unless it is ours
            os.write(go_write, _GO)  # until now it would have left with the pipe
            return Forked(pid)
        except (OSError, ValueError) as error:
            _log.warning("the template made no child: %s; it is replaced", str(error) or type(error).__name__)
            self._lose(now_s)
            return None
        finally:
            os.close(go_read)
            os.close(go_write)

    def _start(self, now_s: float) -> None:
        assert self._selector is not None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_FORK_S)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
                [sys.executable, "-P", "-m", "gateway.template", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *self._inherited],
                stdin=subprocess.DEVNULL,
                env=self.environment,
                process_group=0,
            )
        except OSError as error:
            _log.warning("there is no template: %s", error)
            self._socket.close()
            self._socket = None
            self._postpone(now_s)
            return
        finally:
            theirs.close()
        self._warm_by_s = now_s + _WARM_S
        self._selector.register(self._socket, selectors.EVENT_READ, self.hear)

    def _lose(self, now_s: float) -> None:
        """Give it up: children are started plainly until there is another."""
        _log.info("the template is gone; another one follows", extra={"pid": self.pid})
        self.end()
        self._postpone(now_s)

    def _postpone(self, now_s: float) -> None:
        self._start_at_s = now_s + self._pause_s
        self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)

    def _forget_socket(self) -> None:
        if self._socket is not None:
            assert self._selector is not None
            with contextlib.suppress(KeyError):  # it is closed already
                self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None


def main(orders_fd: int) -> int:
    """Fork a child for each order that comes in, until the supervisor ends. In a child: be it; its exit code."""
    orphans.at_death_of_parent(signal.SIGKILL)  # it holds nothing that could be lost, but the lock of the boot
    gc.disable()
    orders = socket.socket(fileno=orders_fd)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("template")
    import uvloop  # noqa: F401 - what a worker will need

    import gateway.serving.app  # noqa: F401 - as above

    if len(os.listdir("/proc/self/task")) > 1:
        orders.send(_UNFIT)
        return 0
    gc.freeze()  # looking for garbage would copy what is shared
    try:
        orders.send(_READY)
        while True:
            message, descriptors, _flags, _from = socket.recv_fds(orders, 1000, 10)
            if not message:
                return 0
            pid = _fork_twice()
            if pid is None:
                orders.close()
                return _be(json.loads(message), descriptors)
            for fd in descriptors:
                os.close(fd)
            orders.send(str(pid).encode())
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return 0


def _fork_twice() -> int | None:
    """The pid of a grandchild whose parent has left, 0 if there is none; None in the grandchild itself."""
    read_fd, write_fd = os.pipe()
    parent = _fork()
    if parent == 0:
        pid = _fork()
        if pid == 0:
            os.close(read_fd)
            os.close(write_fd)
            return None
        os.write(write_fd, str(max(0, pid)).encode())
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        told = file.read()
    if parent > 0:
        os.waitpid(parent, 0)
    return int(told or b"0")


def _fork() -> int:
    """As os.fork, but -1 if there can be no more processes now."""
    try:
        return os.fork()
    except OSError:
        return -1


def _be(names: list[str], descriptors: list[int]) -> int:
    """Be the child of these orders, once the supervisor knows of it; the exit code."""
    spec_fd, go_fd, *others = descriptors
    if os.read(go_fd, len(_GO)) != _GO:
        return 0
    os.close(go_fd)
    os.setpgid(0, 0)
    with open(spec_fd, "rb") as file:
        spec = children.parse(file.read())
    ours: dict[str, Any] = dict(zip(names, others, strict=True))
    return children.run(dataclasses.replace(spec, **ours))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
