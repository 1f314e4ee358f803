"""One request's share of what a batch gave."""

from __future__ import annotations

from gateway.codecs.codec import Request
from gateway.serving.entry import Run
from gateway.serving.sampling_rules import confidences_of
from gateway.tensors import Signature, Tensors


class Cut:
    """The rows of one request, cut out only when somebody asks: most answers need just the encoded body."""

    __slots__ = ("_cut", "_outputs", "_request", "_start")

    def __init__(self, request: Request, outputs: Tensors, start: int | None) -> None:
        self._request = request
        self._outputs = outputs
        self._start = start  # None: the outputs are all its own
        self._cut: Tensors | None = outputs if start is None else None

    @property
    def rows(self) -> int:
        return self._request.rows

    @property
    def inputs(self) -> Tensors:
        return self._request.inputs

    @property
    def outputs(self) -> Tensors:
        if self._cut is None:
            assert self._start is not None
            stop = self._start + self._request.rows
            self._cut = {name: array[self._start : stop] for name, array in self._outputs.items()}
        return self._cut

    def confidences(self, signature: Signature, run: Run) -> list[float]:
        """How sure each row is; worked out once for all rows of the run."""
        if self._start is None:
            return confidences_of(signature, self._outputs)
        if run.confidences is None:
            run.confidences = confidences_of(signature, self._outputs)
        return run.confidences[self._start : self._start + self._request.rows]
