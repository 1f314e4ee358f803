"""The settings of labels: how they are taken in, how long they are awaited, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Labels of predictions, as `POST /v1/feedback` takes them."""

    max_body_bytes: int = 1024 * 1024
    max_items: int = 10_000  # labels in one request
    max_queue_bytes: int = 16 * 1024 * 1024  # bodies that may wait for the disk, per worker; more are refused
