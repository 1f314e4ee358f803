"""The settings of labels: how they are taken in, how long they are awaited, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Labels of predictions, as `POST /v1/feedback` takes them."""

    max_body_bytes: int = 1024 * 1024
    max_items: int = 10_000  # labels in one request
    max_queue_bytes: int = 16 * 1024 * 1024  # bodies that may wait for the disk, per worker; more are refused
    wait_s: float = 3600.0  # a label that comes later after its prediction is too late to count
    max_waiting_rows: int = 100_000  # rows that wait for labels; beyond that the oldest wait no longer
    recent_rows: int = 5000  # labelled rows of a variant that its performance is computed from
    slice_feature: str = ""  # a categorical feature by whose values performance is told, too
    window_rows: int = 500  # labelled rows of a version in one of the windows by which decay is found
    reference_windows: int = 12  # the first windows, which the later ones are held against
