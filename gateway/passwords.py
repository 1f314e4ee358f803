"""Addresses shown without the passwords in them."""

from __future__ import annotations

import re

LEFT_OUT = "***"  # stands where a password was

_PASSWORDS = re.compile(r"(?<=://)([^:@]*):.*@|((?:ssl)?password=)[^&]*")


def redacted(url: str) -> str:
    """*url* without its passwords. A URL that is written badly loses rather more than that."""
    return _PASSWORDS.sub(_without, url)


def is_redacted(url: str) -> bool:
    """Whether a password was left out of *url*."""
    return f":{LEFT_OUT}@" in url or f"password={LEFT_OUT}" in url


def _without(found: re.Match[str]) -> str:
    user, name = found.groups()
    return f"{user}:{LEFT_OUT}@" if name is None else f"{name}{LEFT_OUT}"
