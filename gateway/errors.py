"""What can go wrong, as one tree of errors with stable codes; how an error travels is the business of the doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class GatewayError(Exception):
    """Root of every error that this project raises on purpose."""

    code = "internal"


class Refused(GatewayError):
    """Root of the errors that a client may retry; *retry_after_s* is the wait that we suggest."""

    code = "refused"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# -- the request is wrong ---------------------------------------------------------------------


class InvalidInput(GatewayError):
    """One field of a request is wrong: *field* names it, *came* and *expected* say how."""

    code = "invalid_input"

    def __init__(self, field: str, came: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {came}")
        self.field, self.came, self.expected = field, came, expected


class BodyTooLarge(GatewayError):
    """The request body has more bytes than the gateway takes. what: the body, or what becomes of it."""

    code = "body_too_large"

    def __init__(self, came_bytes: int, max_bytes: int, *, what: str = "body") -> None:
        super().__init__(f"{what}: expected at most {max_bytes} bytes, got {came_bytes} or more")
        self.came_bytes, self.max_bytes = came_bytes, max_bytes


class UnsupportedEncoding(GatewayError):
    """The request's content encoding is one that is not read here."""

    code = "unsupported_encoding"


class UnknownModel(GatewayError):
    """No model of that name is released here. model: the name, where a client has asked for it."""

    code = "unknown_model"
    model = ""


class UnknownVersion(GatewayError):
    """The model is released here, but not in that version."""

    code = "unknown_version"


class UnknownLabel(UnknownVersion):
    """The model is released here, but its route has no variant of that name, from which the version would come."""


class Unsupported(GatewayError):
    """The protocol has this call, but the gateway does not answer it."""

    code = "unsupported"


class MethodNotAllowed(GatewayError):
    """The path is known, but not with that method."""

    code = "method_not_allowed"

    def __init__(self, came: str, allowed: str) -> None:
        super().__init__(f"method: expected {allowed}, got {came}")
        self.allowed = allowed


class BodyTooSlow(GatewayError):
    """The request body did not come in the time that it may take."""

    code = "body_too_slow"


class TargetingKeyMissing(GatewayError):
    """The flag of this model refuses requests without a targeting key."""

    code = "targeting_key_missing"


# -- the gateway cannot answer now --------------------------------------------------------------


class QueueFull(Refused):
    """The batch queue of this version has no room for these rows."""

    code = "queue_full"


class Shed(Refused):
    """The batch queue of this version is so long that the room left is for requests of a higher priority."""

    code = "shed"


class OverShare(Refused):
    """The batch queue of this version is nearly full, and this client has more than its share of what is in flight."""

    code = "over_share"


class DeadlineUnreachable(Refused):
    """So much is queued for this version that the answer would come after the request's deadline."""

    code = "deadline_unreachable"


class TooManyInFlight(Refused):
    """This worker already holds as many requests as it may."""

    code = "too_many_in_flight"


class TooManyBytesInFlight(Refused):
    """The requests in this worker already hold as many bytes as they may."""

    code = "too_many_bytes_in_flight"


class Draining(Refused):
    """This worker is about to stop and takes no new request."""

    code = "draining"


class ModelNotReady(Refused):
    """The model is released, but no version of it is warm in this worker yet."""

    code = "model_not_ready"


class SampleLogUnavailable(Refused):
    """The answer must be in the sample log before it is given, and the log cannot take it now."""

    code = "sample_log_unavailable"


class VersionShut(Refused):
    """This version has failed too often, or hangs, and the default version cannot answer in its place now."""

    code = "version_shut"


class LabelsUnavailable(Refused):
    """Labels cannot be written down now: too many wait for the disk, or it is full or broken."""

    code = "labels_unavailable"


class DeadlineExceeded(GatewayError):
    """The answer would come too late for this request's deadline."""

    code = "deadline_exceeded"


class CallerLeft(GatewayError):
    """The client went away before its answer was ready; nobody reads this error."""

    code = "caller_left"


class InferenceFailed(GatewayError):
    """The model raised on inputs that its signature allows."""

    code = "inference_failed"


class InvalidOutput(InferenceFailed):
    """The model answered with numbers that are not finite, or with another shape or type than its signature says."""

    code = "invalid_output"


# -- model packages -------------------------------------------------------------------------------


class PackageInvalid(GatewayError):
    """A model package is not complete, not readable or not what its manifest says."""

    code = "package_invalid"


class ConversionRefused(GatewayError):
    """A converter will not write this package, since it would not answer as the original model does."""

    code = "conversion_refused"

    def __init__(self, message: str, *, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report  # what was compared, if it came that far


class VersionQuarantined(GatewayError):
    """Workers died of this package, so it is not loaded."""

    code = "version_quarantined"

    def __init__(self, message: str, *, digest: str) -> None:
        super().__init__(message)
        self.digest = digest


class QuarantineUnavailable(Refused):
    """The list of quarantined versions cannot be read or written now."""

    code = "quarantine_unavailable"


# -- flags and the control plane ------------------------------------------------------------------


class InvalidFlag(InvalidInput):
    """A flag definition is wrong; *field* is the path inside it, as ``flags.iris.route.variants``."""

    code = "invalid_flag"


class UnknownFlag(GatewayError):
    """No flag has that key."""

    code = "unknown_flag"


class UnknownRollout(GatewayError):
    """No rollout has that id."""

    code = "unknown_rollout"


class PreconditionMissing(GatewayError):
    """A write came without the revision that it is based on."""

    code = "precondition_missing"


class RevisionConflict(GatewayError):
    """Somebody else changed the flag since the revision that this write is based on."""

    code = "revision_conflict"

    def __init__(self, message: str, *, current_revision: int) -> None:
        super().__init__(message)
        self.current_revision = current_revision


class ChangeRefused(GatewayError):
    """The change is well formed, but what it changes is in a state that does not allow it."""

    code = "change_refused"


class VersionNotWarm(ChangeRefused):
    """A change would send traffic to a version that some live worker has not warmed.

    blocking: one entry per worker and version, with the keys worker, version, state and reason.
    """

    code = "version_not_warm"

    def __init__(self, message: str, *, blocking: Sequence[Mapping[str, object]]) -> None:
        super().__init__(message)
        self.blocking = blocking


class FlagsFollowFile(ChangeRefused):
    """The flags are kept in a file that control follows: they are changed there."""

    code = "flags_follow_file"


class ApprovalPending(GatewayError):
    """A change was written down as a proposal, and happens once enough people have approved it.

    change: the proposal, as JSON.
    """

    code = "approval_pending"

    def __init__(self, change_id: str, change: Mapping[str, Any]) -> None:
        super().__init__(f"this raises the exposure of a model of high stakes: change {change_id} waits for approval")
        self.change_id, self.change = change_id, change


class UnknownChange(GatewayError):
    """No proposed change has that id."""

    code = "unknown_change"


class StoreUnavailable(Refused):
    """The flag store cannot be read or written now."""

    code = "store_unavailable"


class AuditBroken(GatewayError):
    """The audit trail is not what was written: a row is missing, changed or out of order."""

    code = "audit_broken"


class Unauthenticated(GatewayError):
    """No token came, or one that is not known."""

    code = "unauthenticated"


class KeyUnknown(Unauthenticated):
    """No API key came, or one that is not known or not good any more. key_id: its public id, empty if it has none."""

    def __init__(self, message: str, *, key_id: str = "") -> None:
        super().__init__(message)
        self.key_id = key_id


class UnknownToken(GatewayError):
    """No token has that id."""

    code = "unknown_token"


class UnknownWebhook(GatewayError):
    """No webhook has that id."""

    code = "unknown_webhook"


class Forbidden(GatewayError):
    """The token is known, but its scope does not reach this far."""

    code = "forbidden"


class KeyOutOfScope(Forbidden):
    """The API key *key_id* is known, but not for this model."""

    def __init__(self, message: str, *, key_id: str) -> None:
        super().__init__(message)
        self.key_id = key_id


class UnknownKey(GatewayError):
    """No API key has that id."""

    code = "unknown_key"


class QuotaExceeded(Refused):
    """The API key *key_id* asks for more requests per second than it may."""

    code = "quota_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, key_id: str) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.key_id = key_id


class KeysUnavailable(Refused):
    """This worker could not read yet which API keys there are, so it lets nobody in."""

    code = "keys_unavailable"


# -- settings and start -----------------------------------------------------------------------------


class InvalidSetting(GatewayError):
    """A setting is unknown or has a value that it cannot have."""

    code = "invalid_setting"


class CannotStart(GatewayError):
    """The gateway cannot start as told: a port, a directory or a lock is not to be had; the message says what to do."""

    code = "cannot_start"


class CannotRestart(GatewayError):
    """There is no gateway whose workers could be replaced, or it has not done so in time."""

    code = "cannot_restart"
