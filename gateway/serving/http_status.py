"""How errors travel over HTTP: one row per error, used by every door of the data plane."""

from __future__ import annotations

from gateway import errors
from gateway.codecs.codec import Headers

STATUS: dict[type[errors.GatewayError], int] = {
    errors.InvalidInput: 400,
    errors.TargetingKeyMissing: 400,
    errors.UnknownModel: 404,
    errors.UnknownVersion: 404,
    errors.BodyTooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.CallerLeft: 499,
    errors.InferenceFailed: 500,
    errors.QueueFull: 503,
    errors.TooManyInFlight: 503,
    errors.Draining: 503,
    errors.ModelNotReady: 503,
    errors.DeadlineExceeded: 504,
}


def status_of(error: errors.GatewayError | None) -> int:
    """200 for no error; an error that has no row is ours to explain."""
    return 200 if error is None else STATUS.get(type(error), 500)


def retry_headers(error: errors.GatewayError | None) -> Headers:
    """Retry-After for what a client may ask again."""
    if not isinstance(error, errors.Refused):
        return ()
    return ((b"retry-after", str(max(1, round(error.retry_after_s))).encode()),)
