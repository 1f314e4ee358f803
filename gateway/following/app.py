"""The follower process: its parts made, wired and run."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from gateway.flags.pglink import CHANNEL, read_address
from gateway.flags.sqlite import SqliteStore
from gateway.following.follower import Follower
from gateway.following.line import Line
from gateway.settings import Settings

_log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 1.0
_FAREWELL_TIMEOUT_S = 1.0


def run_follower(
    settings: Settings, *, boot: str, run_dir: Path, report: Callable[[str], None], lifeline_fd: int
) -> None:
    """Follow the database until SIGTERM, SIGINT or the end of the lifeline; then return.

    Runs in the main thread of the follower's process. It is ready at once, whether the database is there or not.
    """
    asyncio.run(_run(settings, boot, run_dir, report, lifeline_fd))
    _log.info("stopped")


async def _run(settings: Settings, boot: str, run_dir: Path, report: Callable[[str], None], lifeline_fd: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    def supervisor_died() -> None:
        loop.remove_reader(lifeline_fd)  # an end of file stays readable for ever
        stopped.set()

    loop.add_reader(lifeline_fd, supervisor_died)
    address = read_address(settings.flags.store, application="sluicegate follower")
    line, ear = Line(address), Line(address, f"LISTEN {CHANNEL}")
    snapshot = SqliteStore(settings.flag_store_path)
    follower = Follower(
        line,
        ear,
        snapshot,
        last_known_good=settings.last_known_good_path,
        status_dir=run_dir / "status",
        host=settings.flags.replica or socket.gethostname(),
        boot=boot,
        copies_keys=settings.server.api_keys == "required",
    )
    report("ready")
    tasks = [asyncio.create_task(each) for each in (*follower.tasks(), _beat(report))]
    for task in tasks:  # if one fails, all end with its error: the supervisor starts another process
        task.add_done_callback(lambda _done: stopped.set())
    await stopped.wait()
    farewell = asyncio.create_task(follower.say_farewell())
    await asyncio.wait({farewell}, timeout=_FAREWELL_TIMEOUT_S)
    # The lines first: a task that waits for a server which is silent cannot be cancelled, but fails when its line ends.
    await line.close()
    await ear.close()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(farewell, *tasks, return_exceptions=True)
    snapshot.close()
    loop.remove_reader(lifeline_fd)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _beat(report: Callable[[str], None]) -> None:
    while True:
        report("beat")
        await asyncio.sleep(BEAT_INTERVAL_S)
