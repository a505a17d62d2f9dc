"""Errors of the service, without any knowledge of HTTP; `http.problems` maps them to statuses.

ServiceError
├── MalformedRequest        the request cannot be parsed (multipart, JSON, base64, length)
├── InvalidParameter        a parameter is unknown or outside its range
├── MediaTypeRefused        the declared type or encoding of the body is not one we read
├── RequestTimeout          the body did not arrive in time
├── BodyTooLarge            more bytes than the limit, declared or counted
├── ModelNotFound           no such model or version is being served
├── Unavailable
│   ├── Overloaded          the bounds of admission are reached; come back later
│   ├── Draining            the process is finishing and takes no new work
│   ├── ModelNotReady       no model is able to answer
│   └── WorkerLost          the worker process that had the picture ended before it answered
├── DeadlineExceeded        queue and inference together took longer than allowed
└── EngineFailure           the runtime raised or gave a row that cannot be used
ProviderUnavailable         the chosen execution provider cannot run here (at start-up only)
├── ProviderNotInstalled    because this onnxruntime was built without it
└── WorkerNotStarted        because the process that should run it does not come up

What a picture or a version can have wrong with it is in `contract.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of every error a request can meet in the service."""

    code: ClassVar[str]


class MalformedRequest(ServiceError):
    """The request cannot be parsed."""

    code = "malformed_request"


class InvalidParameter(ServiceError):
    """A parameter is unknown or outside its range."""

    code = "invalid_parameter"


class MediaTypeRefused(ServiceError):
    """The declared type or encoding of the body is not one this service reads."""

    code = "unsupported_media_type"


class RequestTimeout(ServiceError):
    """The body did not arrive in time."""

    code = "request_timeout"


class BodyTooLarge(ServiceError):
    """The body has more bytes than the limit."""

    code = "body_too_large"


class ModelNotFound(ServiceError):
    """No such model or version is being served."""

    code = "model_not_found"


class Unavailable(ServiceError):
    """The service cannot take this work now.

    Attributes:
        retry_after_s: whole seconds after which a retry has a chance.
        reason: which bound was met, for the metrics.
    """

    def __init__(self, message: str, retry_after_s: int = 1, *, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason: str = reason or self.code


class Overloaded(Unavailable):
    """The bounds of admission are reached."""

    code = "overloaded"


class Draining(Unavailable):
    """The process is finishing and takes no new work."""

    code = "draining"


class ModelNotReady(Unavailable):
    """No model is able to answer: the process is starting, or a lane is dead or stuck."""

    code = "model_not_ready"


class WorkerLost(Unavailable):
    """The worker process that had the picture ended before it answered."""

    code = "worker_lost"


class DeadlineExceeded(ServiceError):
    """Queue and inference together took longer than the request's deadline."""

    code = "deadline_exceeded"


class EngineFailure(ServiceError):
    """The runtime raised, or gave a row that cannot be used."""

    code = "internal_error"


class ProviderUnavailable(Exception):
    """The chosen execution provider cannot run here; the process does not start."""


class ProviderNotInstalled(ProviderUnavailable):
    """The installed onnxruntime was built without the provider."""


class WorkerNotStarted(ProviderUnavailable):
    """A worker process ended, or was not ready in time, while it was starting."""
