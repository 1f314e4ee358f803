"""One batch on the model: inputs stacked, run, and if that fails, each of its parts alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gateway.errors import GatewayError, InferenceFailed, InvalidOutput, VersionShut
from gateway.models.runtime import Runtime
from gateway.serving.breaker import MAX_ROW
from gateway.serving.entry import Batch, Entry, Run
from gateway.serving.outputs import OutputCheck
from gateway.tensors import Signature, Tensors

# Of an error, as much as a reason in a status document needs.
_MAX_FAILURE = 200

Results = Tensors | list[Tensors | GatewayError]  # of a run, uncut; or of each part, if it failed


class Execution:
    """Runs the batches of one version, one at a time, on the event loop or in a run thread.

    check: of the outputs of each run; None where nobody would do anything about it.
    """

    def __init__(self, runtime: Runtime, signature: Signature) -> None:
        self.check: OutputCheck | None = None
        self._runtime = runtime
        self._batchable = signature.batchable
        first = signature.inputs[0]
        self._first, self._first_dtype, self._first_tail = first.name, first.dtype, first.shape[1:]

    def run(
        self,
        batch: Batch,
        run: Run,
        clock: Callable[[], float],
        cost_clock: Callable[[], float],
        patience: int | None = None,
    ) -> Results:
        """Run a batch: its outputs, uncut. If it fails, run its parts singly, so that only the guilty one fails.

        patience: of a candidate. After so many failures in a row, entries that another version may answer are not run.
        """
        begun_s = run.begun_s = clock()
        begun_cost_s = cost_clock() if cost_clock is not clock else begun_s
        check = self.check
        results: Results
        try:
            inputs = self._stacked(batch)
            run.input_s = clock() - begun_s
            results = self._run_rows(inputs, batch.rows)
            if check is not None:
                run.is_watched = True
                run.bad_rows = check.bad_rows(inputs, results, batch.rows)
        except Exception as error:  # whatever a run raises, every entry of the batch must get an answer
            run.failed = True
            run.failure = str(error)[:_MAX_FAILURE]
            run.is_watched = check is not None
            run.outcomes.append((0, 1))
            is_alone = len(batch.entries) == 1
            results = [_as_failure(error)] if is_alone else self._run_singly(batch, run, check, patience)
        run.run_s = clock() - begun_s
        run.cost_s = cost_clock() - begun_cost_s if cost_clock is not clock else run.run_s
        return results

    def _run_rows(self, inputs: Tensors, rows: int) -> Tensors:
        outputs = self._runtime.run(inputs)
        if self._batchable:
            for name, array in outputs.items():
                if array.ndim == 0 or len(array) != rows:
                    raise InvalidOutput(f"output {name!r} has shape {list(array.shape)} for a batch of {rows} rows")
        return outputs

    def _stacked(self, batch: Batch) -> Tensors:
        """The inputs of a batch."""
        entries = batch.entries
        if batch.is_whole:
            flats = [entry.flat for entry in entries]
            if None not in flats:
                values = np.frombuffer(b"".join(flats), self._first_dtype)  # type: ignore[arg-type]  # none is None
                return {self._first: values.reshape(batch.rows, *self._first_tail)}
        stacked = [entry.cut(start, stop) for entry, start, stop in batch.parts()]
        if len(stacked) == 1:
            return stacked[0]
        return {name: np.concatenate([inputs[name] for inputs in stacked]) for name in stacked[0]}

    def _run_singly(
        self, batch: Batch, run: Run, check: OutputCheck | None, patience: int | None
    ) -> list[Tensors | GatewayError]:
        results: list[Tensors | GatewayError] = []
        bad_rows: list[int] = []
        left = patience - 1 if patience is not None else len(batch.entries)
        at = 0
        for place, (_, start, stop) in enumerate(batch.parts()):
            entry = batch.entries[place]  # now: who can wait no longer leaves, and another takes its place
            if left <= 0 and patience is not None and entry.falls_back:
                results.append(VersionShut("the batch failed, and so did what was run of it alone"))
            else:
                found = self._run_alone(entry, start, stop)
                is_bad = isinstance(found, GatewayError)
                if check is not None and not isinstance(found, GatewayError):
                    bad = check.bad_rows(entry.cut(start, stop), found, stop - start)
                    bad_rows += [at + row for row in bad]
                    is_bad = bool(bad)
                left = left - 1 if is_bad else MAX_ROW
                run.outcomes.append((0, 1) if is_bad else (1, 0))
                results.append(found)
            at += stop - start
        run.bad_rows = bad_rows
        return results

    def abort(self) -> None:
        """Call off the run that goes on, and all later ones."""
        self._runtime.abort()

    def renew(self) -> None:
        """Let later runs be made though one was called off."""
        self._runtime = self._runtime.apart()

    def _run_alone(self, entry: Entry, start: int, stop: int) -> Tensors | GatewayError:
        try:
            return self._run_rows(entry.cut(start, stop), stop - start)
        except Exception as error:  # as in run
            return _as_failure(error)


def _as_failure(error: Exception) -> InferenceFailed:
    return error if isinstance(error, InferenceFailed) else InferenceFailed(f"the run failed: {error!r}")
