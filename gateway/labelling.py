"""The settings of labels: how they are taken in, how long they are awaited, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass

# Detectors of changes in the stream of errors, made by river (extra "detectors").
DETECTORS = ("adwin", "page_hinkley", "ddm")


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
    detectors: str = ""  # names of DETECTORS, with commas between: look at each error by itself
    detectors_cool_down_s: float = 86_400.0  # after a change was told, a detector tells none for so long, in rows' time
    detectors_tell: str = "report"  # where they tell what they find: report, or alarm: as drift is, too


def parse_detectors(text: str) -> tuple[str, ...]:
    """The detectors that the setting names.

    >>> parse_detectors("adwin, ddm")
    ('adwin', 'ddm')

    Raises ValueError for one that is not known, or named twice.
    """
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    for name in names:
        if name not in DETECTORS:
            raise ValueError(f"{name!r} is no detector; known are {', '.join(DETECTORS)}")
    if len(set(names)) < len(names):
        raise ValueError("a detector is named twice")
    return names
