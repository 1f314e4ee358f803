"""A thread's time at work: what it ran counts, and so does what others kept it waiting."""

from __future__ import annotations

import threading
import time

from gateway.serving.thread_time import busy_s


def spin(seconds: float) -> tuple[float, float]:
    """Be ready to run for that long on the wall clock; returns what busy_s and the processor say of it."""
    began_s, ran_s, busy_before_s = time.monotonic(), time.thread_time(), busy_s()
    while time.monotonic() < began_s + seconds:
        pass
    return busy_s() - busy_before_s, time.thread_time() - ran_s


def test_it_is_at_least_the_processor_time() -> None:
    busy, ran = spin(0.2)  # the kernel brings it up to date every few milliseconds
    assert busy >= 0.95 * ran > 0


def test_each_thread_has_its_own() -> None:
    spin(0.05)
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(busy_s()))
    thread.start()
    thread.join()
    assert found[0] < busy_s()
