"""Content codings: which of them the gateway reads and writes, by the names that HTTP has for them.

Sources: RFC 9110, 8.4.1 (codings) and 12.5.3 (accept-encoding); RFC 1950 (which HTTP calls deflate); RFC 1952 (gzip).
"""

from __future__ import annotations

import functools

from gateway.errors import UnsupportedEncoding

# Coding -> the window that zlib wants to be told, which also says the format. The first one is answered with, if a
# client takes either.
WINDOWS = {"gzip": 31, "deflate": 15}


def coding_of(came: str) -> str | None:
    """What a content-encoding header says; None for none. Raises UnsupportedEncoding."""
    coding = came.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding == "x-gzip":
        return "gzip"
    if coding not in WINDOWS:
        raise UnsupportedEncoding(f"header content-encoding: expected gzip, deflate or identity, got {came[:40]!r}")
    return coding


@functools.lru_cache(256)  # clients write few different ones
def coding_for(accepted: str) -> str | None:
    """The coding to answer with to an accept-encoding header; None: as it is. What makes no sense is passed over."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            continue
    others = weights.get("*", 0.0)
    wanted = {coding: weights.get(coding, weights.get(f"x-{coding}", others)) for coding in WINDOWS}
    best = max(wanted, key=lambda coding: wanted[coding])  # of equals the first
    return best if wanted[best] > 0 else None
