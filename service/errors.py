"""Errors of the service. They know no HTTP; `http.problems` maps them to statuses.

`ServiceError` is the base of what a request can get, `ProviderUnavailable` of what keeps the process
from starting. Errors of pictures and of model files are in `contract.errors`.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, get_args

OverloadReason = Literal["images", "bytes", "queue", "memory", "deadline"]


class ServiceError(Exception):
    """Base of the errors that a request can get."""

    code: ClassVar[str]


class MalformedRequest(ServiceError):
    """The request cannot be parsed: multipart, JSON, base64 or length."""

    code = "malformed_request"


class InvalidParameter(ServiceError):
    """A parameter is unknown or out of range."""

    code = "invalid_parameter"


class MediaTypeRefused(ServiceError):
    """The body's Content-Type or Content-Encoding is not supported."""

    code = "unsupported_media_type"


class RequestTimeout(ServiceError):
    """The body did not arrive in time."""

    code = "request_timeout"


class BodyTooLarge(ServiceError):
    """The body exceeds the limit, by its Content-Length or by the bytes received."""

    code = "body_too_large"


class ModelNotFound(ServiceError):
    """The model or version is not served."""

    code = "model_not_found"


class Unauthorized(ServiceError):
    """The request to the admin port has no valid token."""

    code = "unauthorized"


class Unavailable(ServiceError):
    """The service cannot accept this request now.

    Attributes:
        retry_after_s: whole seconds until a retry may succeed.
        reason: which limit was reached, for the metrics; by default the code.
    """

    def __init__(
        self, message: str, retry_after_s: int = 1, *, reason: OverloadReason | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason: str = reason or self.code


class Overloaded(Unavailable):
    """Too many pictures or bytes are in flight, or the wait would exceed the deadline."""

    code = "overloaded"


class Draining(Unavailable):
    """The process is shutting down."""

    code = "draining"


class ModelNotReady(Unavailable):
    """The process is starting, or a lane is dead or stuck."""

    code = "model_not_ready"


class WorkerLost(Unavailable):
    """The worker process ended before it returned the picture's result."""

    code = "worker_lost"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed before its result was ready."""

    code = "deadline_exceeded"


class EngineFailure(ServiceError):
    """The runtime raised, or returned an unusable row."""

    code = "internal_error"  # clients cannot do anything about it


# Every code and reason of a request that is refused for lack of capacity, for the metrics.
REFUSALS: Final = (
    *((Overloaded.code, reason) for reason in get_args(OverloadReason)),
    *((one.code, one.code) for one in (Draining, ModelNotReady, WorkerLost)),
    (DeadlineExceeded.code, "deadline"),
)


# Start-up errors


class ProviderUnavailable(Exception):
    """The configured execution provider does not work on this machine."""


class ProviderNotInstalled(ProviderUnavailable):
    """The installed onnxruntime was built without the provider."""


class WorkerNotStarted(ProviderUnavailable):
    """A worker process ended during its start, or was not ready in time."""
