"""One batch on the model: inputs stacked, run, and if that fails, each of its parts alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gateway.errors import GatewayError, InferenceFailed
from gateway.models.runtime import Runtime
from gateway.serving.entry import Batch, Entry, Run
from gateway.tensors import Signature, Tensors

Results = Tensors | list[Tensors | GatewayError]  # of a run, uncut; or of each part, if it failed


class Execution:
    """Runs the batches of one version, one at a time, on the event loop or in a run thread."""

    def __init__(self, runtime: Runtime, signature: Signature) -> None:
        self._runtime = runtime
        self._batchable = signature.batchable
        self._first = signature.inputs[0]

    def run(self, batch: Batch, run: Run, clock: Callable[[], float], cost_clock: Callable[[], float]) -> Results:
        """Run a batch: its outputs, uncut. If it fails, run its parts singly, so that only the guilty one fails."""
        begun_s = clock()
        begun_cost_s = cost_clock() if cost_clock is not clock else begun_s
        results: Results
        try:
            results = self._run_rows(self._stacked(batch), batch.rows)
        except Exception as error:  # whatever a run raises, every entry of the batch must get an answer
            run.failed = True
            if len(batch.entries) == 1:
                results = [_as_failure(error)]
            else:
                results = [self._run_alone(*part) for part in batch.parts()]
        run.run_s = clock() - begun_s
        run.cost_s = cost_clock() - begun_cost_s if cost_clock is not clock else run.run_s
        return results

    def _run_rows(self, inputs: Tensors, rows: int) -> Tensors:
        outputs = self._runtime.run(inputs)
        if self._batchable:
            _check_rows(outputs, rows)
        return outputs

    def _stacked(self, batch: Batch) -> Tensors:
        """The inputs of a batch."""
        entries = batch.entries
        if batch.is_whole:
            flats = [entry.flat for entry in entries]
            if None not in flats:
                first = self._first
                values = np.frombuffer(b"".join(flats), first.dtype)  # type: ignore[arg-type]  # none is None
                return {first.name: values.reshape(batch.rows, *first.shape[1:])}
        stacked = [entry.cut(start, stop) for entry, start, stop in batch.parts()]
        if len(stacked) == 1:
            return stacked[0]
        return {name: np.concatenate([inputs[name] for inputs in stacked]) for name in stacked[0]}

    def _run_alone(self, entry: Entry, start: int, stop: int) -> Tensors | GatewayError:
        try:
            return self._run_rows(entry.cut(start, stop), stop - start)
        except Exception as error:  # as in run
            return _as_failure(error)


def _as_failure(error: Exception) -> InferenceFailed:
    return error if isinstance(error, InferenceFailed) else InferenceFailed(f"the run failed: {error!r}")


def _check_rows(outputs: Tensors, rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise InferenceFailed(f"output {name!r} has shape {list(array.shape)} for a batch of {rows} rows")
