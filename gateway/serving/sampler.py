"""The way of a sampled prediction out of the event loop: a bounded queue, and a thread that writes the sample log."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.metrics import ServingMetrics
from gateway.redaction import load_key, parse_setting
from gateway.samples.lines import LineBuilder
from gateway.samples.record import Sample, SampleGroup
from gateway.samples.segments import SegmentWriter, recover
from gateway.serving.losses import WRITE_ERROR, Losses, reason_of
from gateway.settings import SamplingSettings

log = logging.getLogger(__name__)

# How often the writer looks into the queue. Waking it per prediction would cost the event loop a thread switch each.
_TICK_S = 0.05
# Written at once: usually all that has come in a tick. Whenever the writer comes back from the system it waits for the
# interpreter, and the event loop must hand it over: the fewer writes, the less both of them pay for that.
_LINES_PER_WRITE = 1024
# While it builds lines the writer holds the interpreter, for which the event loop would wait up to 5 ms; so it builds
# lines of about this many values at a time (0.3 to 0.6 ms of work), and sleeps so long between.
_VALUES_PER_BREATH = 5000
_VALUES_BESIDE = 8  # of a line, as costly together as so many values: ids and what the rest takes
_LINES_PER_BREATH = 128
_BREATH_S = 100e-6

# What is raised where the arrays of a sample are not what its signature says.
_NOT_AS_THE_SIGNATURE_SAYS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


# Told on the event loop what became of a sample: None if the disk has it.
Done = Callable[[OSError | None], None]
_Queued = tuple[Sample | SampleGroup, int, Done | None]


def free_bytes(path: Path) -> int:
    """Free disk space for this user where *path* is. Raises OSError."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


class Sampler:
    """Takes samples on the event loop and writes them to the log in a thread of its own.

    Nothing here is ever waited for: what cannot be queued or written is dropped and counted by reason (queue_full,
    disk_full, write_error, closed). Every failure is taken as passing, so the log goes on by itself when its cause is
    gone. What is redacted is so before it comes near the disk; redaction_key: the file with the key of its hashes.
    losses: what the disk did not take.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        root: Path,
        *,
        boot: str,
        metrics: ServingMetrics,
        redaction_key: Path,
        free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._settings = settings
        self._root = root
        self._boot = boot
        self._metrics = metrics
        self._free_bytes = free_bytes
        self._queue: deque[_Queued] = deque()  # append and popleft are atomic
        # Each counter has one writer, so none needs a lock: the loop adds to the offered, the thread to the taken.
        self._offered = 0
        self._offered_bytes = 0
        self._taken = 0
        self._taken_bytes = 0
        self._closed = False
        self._stop = threading.Event()
        self._awake = threading.Event()  # somebody waits for the disk, or for the end
        self._loop: asyncio.AbstractEventLoop | None = None  # of those who wait
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._builder = LineBuilder(
            settings.max_rows_per_request, parse_setting(settings.redact), lambda: load_key(redaction_key)
        )
        self._segments = SegmentWriter(
            root, boot=boot, max_bytes=settings.segment_max_bytes, max_age_s=settings.segment_max_age_s
        )
        self._trouble = ""  # why samples are being dropped, as last logged; empty while all is well
        self.losses = Losses()

    def start(self) -> None:
        """Start the writer thread. It first closes what dead processes have left open in the log."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Predictions that wait for the writer."""
        return self._offered - self._taken

    @property
    def waiting_bytes(self) -> int:
        """What their tensors hold."""
        return self._offered_bytes - self._taken_bytes

    def offer(self, sample: Sample, done: Done | None = None) -> None:
        """Queue one sample; never blocks, never raises. Called on the event loop (or any one thread).

        done: is called on the event loop, perhaps before this returns, once the disk has all lines of the sample
        (fdatasync, one for all who wait) or it is clear that it will not. Nobody else is told.
        """
        if self._closed:
            self._metrics.samples_dropped.labels("closed").inc()
            if done is not None:
                done(OSError(errno.ESHUTDOWN, "the sample log is closed"))
            return
        size = 0
        for tensors in (sample.inputs, sample.outputs):
            for array in tensors.values():
                size += array.nbytes
                if array.dtype == object:  # its nbytes are those of the references; the texts come on top
                    size += sum(map(len, array.ravel().tolist()))
        if self._room_for(size) < 1:
            self._metrics.samples_dropped.labels("queue_full").inc()
            if done is not None:
                done(OSError(errno.EAGAIN, "too much waits for the disk"))
            return
        self._put(sample, 1, size, done)
        if done is not None:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._awake.set()

    def offer_group(self, group: SampleGroup) -> None:
        """Queue what one run answered, or as much of it as there is room for, as `offer` does it for one prediction."""
        count = group.predictions
        size = sum(map(len, group.values)) + sum(array.nbytes for array in group.all_outputs.values())
        room = 0 if self._closed else self._room_for(size)
        if room < count:
            reason = "closed" if self._closed else "queue_full"
            self._metrics.samples_dropped.labels(reason).inc(count - max(room, 0))
            if room < 1:
                return
            group.cut(room)
            count = room
        self._put(group, count, size, None)

    def _room_for(self, size: int) -> int:
        """How many more predictions may wait, if they have *size* bytes together."""
        if self._offered_bytes - self._taken_bytes + size > self._settings.max_queue_bytes:
            return 0
        return self._settings.max_queue_records - (self._offered - self._taken)

    def _put(self, sample: Sample | SampleGroup, count: int, size: int, done: Done | None) -> None:
        self._offered += count
        self._offered_bytes += size
        self._queue.append((sample, size, done))

    def close(self, timeout_s: float) -> None:
        """Take no more samples, write what is queued and close the segments, waiting at most *timeout_s* for it.

        What a stuck disk then still holds back is left to the thread, which does not keep the process alive.
        """
        self._closed = True
        self._stop.set()
        self._awake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("sample log not closed in time", extra={"timeout_s": timeout_s})

    # -- everything below runs in the writer thread ------------------------------------------------

    def _run(self) -> None:
        try:
            recovered = recover(self._root, boot=self._boot)
            if recovered:
                log.info("closed segments of dead processes", extra={"segments": recovered})
            self._segments.write_schema()
        except OSError as error:
            self._report(WRITE_ERROR, error)
        last_sync = time.monotonic()
        stopping = False
        while not stopping:
            self._awake.wait(_TICK_S)
            self._awake.clear()
            stopping = self._stop.is_set()
            while self._queue:
                self._write_and_tell(self._take())
                last_sync = self._tend(last_sync)
            last_sync = self._tend(last_sync)
        try:
            self._segments.close()
        except OSError as error:
            self._report(WRITE_ERROR, error)

    def _take(self) -> list[_Queued]:
        taken: list[_Queued] = []
        lines = 0
        while self._queue and lines < _LINES_PER_WRITE:
            sample, size, _ = queued = self._queue.popleft()
            taken.append(queued)
            lines += self._builder.lines_of(sample)
            self._taken += sample.predictions
            self._taken_bytes += size
        return taken

    def _write_and_tell(self, taken: list[_Queued]) -> None:
        """Write samples, and tell those who wait what became of theirs: one sync for all of them."""
        lost = self._write([sample for sample, _, _ in taken])
        waiting = [(done, lost.get(id(sample)), sample) for sample, _, done in taken if done is not None]
        if not waiting:
            return
        try:
            self._segments.sync()
        except OSError as error:
            self._report(WRITE_ERROR, error)
            waiting = [(done, error, sample) for done, _, sample in waiting]
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_tell, waiting)

    def _tend(self, last_sync: float) -> float:
        """Sync and rotate what is due; returns the time of the latest sync."""
        now = time.monotonic()
        try:
            if self._segments.has_unsynced and now - last_sync >= self._settings.sync_s:
                last_sync = now
                self._segments.sync()
            self._segments.close_old()
        except OSError as error:
            self._report(WRITE_ERROR, error)
        return last_sync

    def _write(self, samples: list[Sample | SampleGroup]) -> dict[int, OSError]:
        """Build and write the lines of *samples*: one write per version and hour.

        Returns, by id(), why some are lost.
        """
        lost: dict[int, OSError] = {}
        groups: dict[tuple[str, str, int], list[Sample | SampleGroup]] = {}
        for sample in samples:
            like = sample.like
            groups.setdefault((like.model, like.version, like.ts_ns // (3600 * 10**9)), []).append(sample)
        for (model, version, _hour), group in groups.items():
            predictions = sum(sample.predictions for sample in group)
            self._metrics.samples.labels(model).inc(predictions)
            try:
                if self._free() < self._settings.min_free_bytes:
                    raise OSError(errno.ENOSPC, f"less than sampling.min_free_bytes free in {self._root}")
                pieces, lines, broken = self._build(group)
                if lines:
                    self._segments.write(model, version, group[0].like.ts_ns, pieces)
            except OSError as error:
                reason = reason_of(error)
                self._metrics.samples_dropped.labels(reason).inc(predictions)
                self.losses.add(reason, predictions)
                self._report(reason, error)
                lost.update(dict.fromkeys(map(id, group), error))
                continue
            self._metrics.samples_written.inc(lines)
            lost.update(broken)
            if not broken:
                self._report("", None)
        return lost

    def _free(self) -> int:
        try:
            return self._free_bytes(self._root)
        except FileNotFoundError:  # somebody has cleared it away
            self._root.mkdir(parents=True, exist_ok=True)
            return self._free_bytes(self._root)

    def _build(self, samples: list[Sample | SampleGroup]) -> tuple[list[bytes], int, dict[int, OSError]]:
        """The lines of *samples* in pieces, how many these are, and, by id(), why some samples have none."""
        pieces: list[bytes] = []
        lines = 0
        broken: dict[int, OSError] = {}
        for together in _portions(samples):
            if pieces and not self._closed:
                time.sleep(_BREATH_S)
            try:
                pieces += self._builder.pieces(together)
                lines += sum(map(self._builder.lines_of, together))
                continue
            except _NOT_AS_THE_SIGNATURE_SAYS:
                pass  # some sample is lost, its neighbours are not
            for sample in together:
                try:
                    pieces += self._builder.pieces([sample])
                    lines += self._builder.lines_of(sample)
                except _NOT_AS_THE_SIGNATURE_SAYS as error:
                    self._metrics.samples_dropped.labels(WRITE_ERROR).inc(sample.predictions)
                    self.losses.add(WRITE_ERROR, sample.predictions)
                    self._report(WRITE_ERROR, error)
                    broken[id(sample)] = OSError(errno.EINVAL, f"no lines can be made of it: {error}")
        return pieces, lines, broken

    def _report(self, reason: str, error: Exception | None) -> None:
        """Log the begin and the end of trouble once, not each lost sample."""
        self.losses.trouble = f"{reason}: {error}" if reason else ""
        if reason == self._trouble:
            return
        if reason:
            log.warning("samples are being dropped", extra={"reason": reason, "error": str(error)})
        else:
            log.info("the sample log is written again", extra={"was": self._trouble})
        self._trouble = reason


def _portions(samples: list[Sample | SampleGroup]) -> Iterator[list[Sample | SampleGroup]]:
    """*samples* in their order, cut where the writer shall let the event loop have the interpreter."""
    portion: list[Sample | SampleGroup] = []
    values = lines = 0
    for sample in samples:
        portion.append(sample)
        signature, rows = sample.like.signature, sample.predictions * sample.like.rows
        lines += rows
        # A size that varies counts as one: what it will be is not known.
        tensors = [abs(math.prod(spec.shape[1:])) for spec in (*signature.inputs, *signature.outputs)]
        values += rows * (_VALUES_BESIDE + sum(tensors))
        if values >= _VALUES_PER_BREATH or lines >= _LINES_PER_BREATH:
            yield portion
            portion, values, lines = [], 0, 0
    if portion:
        yield portion


def _tell(waiting: list[tuple[Done, OSError | None, Sample | SampleGroup]]) -> None:
    """On the event loop; who fails at it must not keep it from the others."""
    for done, error, sample in waiting:
        try:
            done(error)
        except Exception:
            ((prediction_id, request_id),) = sample.identities  # who waits is alone
            told = {"model": sample.like.model, "request_id": request_id, "prediction_id": prediction_id}
            log.exception("an answer that was logged could not be given", extra=told)
