"""Kinds of metrics that prometheus_client does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Histogram

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once, for the price of a few."""

    def observe_many(self, child: Histogram, values: list[float]) -> None:
        """Observe *values* on *child*, which is this histogram with its labels bound."""
        import numpy as np  # here and not above: the supervisor and the exporter need none

        # A file per process holds each bucket's own count; the page adds them up. To add to a bucket once per flush
        # instead of once per observation, the child's own parts are used: they are what its observe() uses.
        array = np.array(values)
        bounds: Array | None = getattr(self, "_bounds_array", None)
        if bounds is None:
            bounds = self._bounds_array = np.array(child._upper_bounds)
        counts = np.bincount(np.searchsorted(bounds, array)).tolist()
        for index, count in enumerate(counts):
            if count:
                child._buckets[index].inc(count)
        child._sum.inc(float(array.sum()))
