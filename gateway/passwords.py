"""Addresses shown without the passwords in them."""

from __future__ import annotations

import re

LEFT_OUT = "***"  # stands where a password was

_PASSWORDS = re.compile(r"(?<=://)([^:@]*):.*@|((?:ssl)?password=)[^&]*")


def redacted(url: str) -> str:
    """*url* without its passwords. A URL that is written badly loses rather more than that."""
    return _PASSWORDS.sub(_without, url)


def host_alone(url: str) -> str:
    """Scheme, host and port of *url*, for one of which anything else may be a secret, the path too."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if rest in (place, f"{place}/") and "@" not in place:
        return url
    if "@" in rest[len(place) :]:  # of a password with a slash in it, perhaps: then the host is none
        return f"{scheme}://{LEFT_OUT}"
    return f"{scheme}://{place.rpartition('@')[2]}/{LEFT_OUT}"


def is_redacted(url: str) -> bool:
    """Whether something was left out of *url*, by either."""
    return f":{LEFT_OUT}@" in url or f"password={LEFT_OUT}" in url or url.endswith(f"/{LEFT_OUT}")


def _without(found: re.Match[str]) -> str:
    user, name = found.groups()
    return f"{user}:{LEFT_OUT}@" if name is None else f"{name}{LEFT_OUT}"
