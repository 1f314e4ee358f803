"""The way of labels to the disk: a bounded queue of bodies, and a thread that checks, writes and syncs them."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import GatewayError, InvalidInput, LabelsUnavailable
from gateway.labelling import LabelSettings
from gateway.metrics import ServingMetrics
from gateway.samples.labels import OPEN_LABELS, LabelLog, checked, items_in
from gateway.samples.segments import recover
from gateway.serving.losses import Losses, reason_of
from gateway.serving.sampler import free_bytes
from gateway.settings import SamplingSettings

log = logging.getLogger(__name__)

# How often old segments are looked after while no labels come.
_TICK_S = 1.0
# While it checks labels the thread holds the interpreter, for which the event loop would wait; so it sleeps this long
# after this many labels (about 0.2 ms of work).
_ITEMS_PER_BREATH = 64
_BREATH_S = 100e-6
_GROUP_BODIES = 256
# Wrong items that are told one by one; more are counted.
_MAX_TOLD = 100


@dataclass(slots=True)
class Taken:
    """What became of one request. rejected: item and why, of the first wrong ones; wrong: how many there are."""

    is_bulk: bool
    accepted: int = 0
    wrong: int = 0
    rejected: list[tuple[int, InvalidInput]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One body, and the future that its request waits for, which belongs to *loop*."""

    body: bytes
    ts_ns: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Taken]


class LabelWriter:
    """Takes bodies on the event loop and writes their labels in a thread of its own.

    Bodies that came while the disk was busy share one fdatasync. An answer is given only when the labels are on the
    disk; if that fails, the answer is LabelsUnavailable, and sending them again does no harm. losses: bodies that the
    disk did not take.
    """

    def __init__(
        self,
        settings: LabelSettings,
        sampling: SamplingSettings,
        root: Path,
        *,
        boot: str,
        metrics: ServingMetrics,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._settings = settings
        self._min_free_bytes = sampling.min_free_bytes
        self._root = root
        self._boot = boot
        self._metrics = metrics
        self._free_bytes = free_bytes
        self._queue: deque[_Waiting] = deque()  # append and popleft are atomic
        # Each counter has one writer: the loop adds to the first, the thread to the second.
        self._offered_bytes = 0
        self._taken_bytes = 0
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)
        self._log = LabelLog(
            root, boot=boot, max_bytes=sampling.segment_max_bytes, max_age_s=sampling.segment_max_age_s
        )
        self._trouble = ""
        self.losses = Losses()

    def start(self) -> None:
        """Start the thread. It first closes what dead processes have left open."""
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of labels that wait for the disk."""
        return self._offered_bytes - self._taken_bytes

    def offer(self, body: bytes) -> asyncio.Future[Taken]:
        """Queue one body; never blocks. Called on the event loop.

        The future gives what became of it, or raises InvalidInput (the body, or a single label, is wrong) or
        LabelsUnavailable. Raises LabelsUnavailable if the queue is full or closed.
        """
        if self._closed:
            self._metrics.labels.labels("refused").inc()
            raise LabelsUnavailable("this worker is about to stop and takes no more labels")
        waiting_bytes = self.waiting_bytes
        if waiting_bytes and waiting_bytes + len(body) > self._settings.max_queue_bytes:
            self._metrics.labels.labels("refused").inc()
            raise LabelsUnavailable(f"{waiting_bytes} bytes of labels wait for the disk, the most that may")
        self._offered_bytes += len(body)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(body, time.time_ns(), loop, loop.create_future())
        self._queue.append(waiting)
        self._wake.set()
        return waiting.future

    def close(self, timeout_s: float) -> None:
        """Take no more, write what is queued and close the segments, waiting at most *timeout_s* for it."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("label log not closed in time", extra={"timeout_s": timeout_s})

    # -- everything below runs in the writer thread ------------------------------------------------

    def _run(self) -> None:
        try:
            recovered = recover(self._root, boot=self._boot, pattern=OPEN_LABELS)
            if recovered:
                log.info("closed label segments of dead processes", extra={"segments": recovered})
        except OSError as error:
            self._report(str(error))
        stopping = False
        while not stopping:
            self._wake.wait(_TICK_S)
            self._wake.clear()
            stopping = self._closed
            while self._queue:
                self._write([self._queue.popleft() for _ in range(min(len(self._queue), _GROUP_BODIES))])
            try:
                self._log.close_old()
            except OSError as error:
                self._report(str(error))
        try:
            self._log.close()
        except OSError as error:
            self._report(str(error))

    def _write(self, group: list[_Waiting]) -> None:
        """Write the labels of *group*, sync them together, and answer."""
        answers: list[tuple[_Waiting, Taken | GatewayError]] = []
        written: list[tuple[_Waiting, Taken]] = []
        for waiting in group:
            self._taken_bytes += len(waiting.body)
            try:
                written.append((waiting, self._append(waiting)))
            except InvalidInput as error:
                self._metrics.labels.labels("invalid").inc()
                answers.append((waiting, error))
            except OSError as error:
                answers.append((waiting, self._unavailable(error)))
        try:
            if any(taken.accepted for _waiting, taken in written):
                self._log.sync()
                self._report("")
        except OSError as error:
            failure = self._unavailable(error)
            answers += [(waiting, failure) for waiting, _taken in written]
        else:
            answers += written
            for _waiting, taken in written:
                self._metrics.labels.labels("accepted").inc(taken.accepted)
                self._metrics.labels.labels("invalid").inc(taken.wrong)
        for waiting, answer in answers:
            waiting.loop.call_soon_threadsafe(_resolve, waiting.future, answer)

    def _append(self, waiting: _Waiting) -> Taken:
        """Check and write one body's labels. Raises InvalidInput if there is nothing right in it, OSError."""
        is_bulk, items = items_in(waiting.body)
        if len(items) > self._settings.max_items:
            raise InvalidInput("body", f"{len(items)} labels", f"at most {self._settings.max_items}")
        taken = Taken(is_bulk)
        lines: list[bytes] = []
        for index, item in enumerate(items):
            try:
                lines.append(checked(item, ts_ns=waiting.ts_ns, where=f"items[{index}]." if is_bulk else "").to_line())
            except InvalidInput as error:
                if not is_bulk:
                    raise
                taken.wrong += 1
                if len(taken.rejected) < _MAX_TOLD:
                    taken.rejected.append((index, error))
            if index % _ITEMS_PER_BREATH == _ITEMS_PER_BREATH - 1 and not self._closed:
                time.sleep(_BREATH_S)
        if lines:
            self._root.mkdir(parents=True, exist_ok=True)
            if self._free_bytes(self._root) < self._min_free_bytes:
                raise OSError(errno.ENOSPC, f"less than sampling.min_free_bytes free in {self._root}")
            self._log.append(lines, waiting.ts_ns)
        taken.accepted = len(lines)
        return taken

    def _unavailable(self, error: OSError) -> LabelsUnavailable:
        self._metrics.labels.labels("refused").inc()
        self.losses.add(reason_of(error))
        self._report(str(error))
        return LabelsUnavailable(f"labels cannot be written down now: {error.strerror}", retry_after_s=5.0)

    def _report(self, trouble: str) -> None:
        """Log the begin and the end of trouble once, not each lost body."""
        self.losses.trouble = trouble
        if trouble and not self._trouble:
            log.warning("labels cannot be written down", extra={"error": trouble})
        elif self._trouble and not trouble:
            log.info("labels are written down again", extra={"was": self._trouble})
        self._trouble = trouble


def _resolve(future: asyncio.Future[Taken], answer: Taken | GatewayError) -> None:
    if future.done():  # its client has left
        return
    if isinstance(answer, GatewayError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
