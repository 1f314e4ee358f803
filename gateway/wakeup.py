"""The signals of a process as bytes to be read, and whether it has a terminal that could send one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def signal_numbers(numbers: Iterable[signal.Signals]) -> Iterator[int]:
    """A file descriptor from which those of *numbers* can be read that came in, one byte each."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, _noted) for number in numbers}
    wakeup_before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield read_fd
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The interpreter has written the number to the wakeup file; the loop does the rest."""


def has_terminal() -> bool:
    """Whether the process has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def leave(number: int, _frame: FrameType | None) -> NoReturn:
    """A signal handler that ends the process with the exit code of that signal, and cleans up."""
    raise SystemExit(128 + number)
