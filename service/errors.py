"""Every error a caller can meet, drawn as a tree, and one table from error to HTTP status and gRPC code.

    ServiceError
    ├── RequestError              the caller's fault
    │   ├── MalformedRequest          the bytes do not form a request (JSON, lengths, datatypes, ranges)
    │   ├── RequestMismatch           a good request that does not fit this model (names, datatypes, shapes, rows)
    │   ├── PayloadTooLarge           over the limit on body bytes
    │   ├── UnsupportedEncoding       a Content-Encoding that is not spoken here
    │   ├── Unauthenticated           no key, or none of ours
    │   ├── Forbidden                 a key that does not open this, or what is switched off
    │   ├── NotFound                  no such route, model or version
    │   ├── LoadFailed                a load that was asked for cannot be done; what served before goes on
    │   ├── MethodNotAllowed          the route exists, the method does not
    │   └── NotSupported              a part of the protocol that this server has not, or that is switched off
    ├── Unavailable               nobody's fault now; trying again may help
    │   ├── ModelNotReady             still loading, or UNAVAILABLE with a reason
    │   └── Overloaded                carries retry_after_s
    │       ├── QueueFull                 admission is bounded
    │       │   └── MemoryFull                by what waiting requests hold
    │       └── DeadlineExceeded          it could not be, or was not, answered within the request's timeout
    │           └── ExpiredInQueue            which it had been admitted with
    ├── InferenceFailed           the runtime refused a batch that had passed validation
    └── ModelRejected             at load: this version must not serve, and why (never sent as an infer answer)

Messages are for the person who reads them at night: they name the thing, what was found, what was expected, the next
step. This file knows neither HTTP headers nor FastAPI; the transports translate through `STATUS`.
"""

from __future__ import annotations

from dataclasses import dataclass


class ServiceError(Exception):
    """Base of the tree. `str(error)` is the text the caller sees."""


class RequestError(ServiceError):
    """The caller's fault: the same request will fail again."""


class MalformedRequest(RequestError):
    """The bytes do not form a request."""


class RequestMismatch(RequestError):
    """The request is well formed but does not fit the model."""


class PayloadTooLarge(RequestError):
    """The body is over the configured limit."""


class UnsupportedEncoding(RequestError):
    """The body is packed in a Content-Encoding that is not spoken here."""


class Unauthenticated(RequestError):
    """The request shows no key, or none of this server's."""


class Forbidden(RequestError):
    """The request's key does not open this, or nobody's does."""


class NotFound(RequestError):
    """No such route, model or version."""


class LoadFailed(RequestError):
    """A load that a client asked for cannot be done, and why. What was loaded before serves on."""


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""


class NotSupported(RequestError):
    """A part of the protocol that this server does not have, or that its operator has not switched on."""


class Unavailable(ServiceError):
    """Nobody's fault now; trying again may help."""


class ModelNotReady(Unavailable):
    """The model is loading, unloading, or UNAVAILABLE; the text says which and why."""


class Overloaded(Unavailable):
    """More work than can be done in time. `retry_after_s` is when another try is likely to be taken."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """The scheduler's queue is full."""


class MemoryFull(QueueFull):
    """What waits in all queues together holds all the memory that it may."""


class DeadlineExceeded(Overloaded):
    """The request's own timeout passed, or would have, before its turn came. It was not run."""


class ExpiredInQueue(DeadlineExceeded):
    """As above, of a request that had been admitted: others took longer than was expected."""


class InferenceFailed(ServiceError):
    """ONNX Runtime refused a batch that had passed validation."""


class ModelRejected(ServiceError):
    """Raised while loading: this version must not serve. The text becomes the reason of its UNAVAILABLE state."""


@dataclass(frozen=True, slots=True)
class Status:
    """How an error is told on the wire: HTTP status (RFC 9110) and gRPC code (name in google.rpc.Code)."""

    http: int
    grpc: str


STATUS: dict[type[ServiceError], Status] = {
    ServiceError: Status(500, "INTERNAL"),
    RequestError: Status(400, "INVALID_ARGUMENT"),
    PayloadTooLarge: Status(413, "INVALID_ARGUMENT"),
    UnsupportedEncoding: Status(415, "INVALID_ARGUMENT"),
    Unauthenticated: Status(401, "UNAUTHENTICATED"),
    Forbidden: Status(403, "PERMISSION_DENIED"),
    NotFound: Status(404, "NOT_FOUND"),
    MethodNotAllowed: Status(405, "UNIMPLEMENTED"),
    # As in Triton (TRITONSERVER_ERROR_UNSUPPORTED).
    NotSupported: Status(501, "UNIMPLEMENTED"),
    Unavailable: Status(503, "UNAVAILABLE"),
    # KServe's gRPC client retries UNAVAILABLE three times within 0.7 s; a full queue must not invite that storm.
    QueueFull: Status(503, "RESOURCE_EXHAUSTED"),
    # As in Triton ("Request timeout expired"); 504 is for gateways (RFC 9110, 15.6.5), and this is a refusal.
    DeadlineExceeded: Status(503, "DEADLINE_EXCEEDED"),
}


def status_of(error: ServiceError) -> Status:
    """The status of the nearest ancestor that has a row in `STATUS`."""
    kind = type(error)
    if kind not in _NEAREST:
        _NEAREST[kind] = next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)
    return _NEAREST[kind]


_NEAREST: dict[type[ServiceError], Status] = {}


REASONS: dict[type[Exception], str] = {
    Exception: "internal",
    RequestError: "invalid_request",
    PayloadTooLarge: "too_large",
    UnsupportedEncoding: "unsupported_encoding",
    Unauthenticated: "unauthenticated",
    Forbidden: "forbidden",
    NotFound: "not_found",
    MethodNotAllowed: "method_not_allowed",
    NotSupported: "not_supported",
    Unavailable: "unavailable",
    ModelNotReady: "not_ready",
    QueueFull: "queue_full",
    MemoryFull: "memory",
    DeadlineExceeded: "deadline",
    ExpiredInQueue: "expired_in_queue",
    InferenceFailed: "model_failed",
}
"""One word for why an infer request got no answer, for those who count."""


def reason_of(error: Exception) -> str:
    """The word of the nearest ancestor that has a row in `REASONS`."""
    return next(REASONS[ancestor] for ancestor in type(error).__mro__ if ancestor in REASONS)


_EXCERPT_CHARACTERS = 60


def excerpt(text: str) -> str:
    """A caller's own words, cut to a length that a message can carry: a refusal must not grow with the request."""
    if len(text) <= _EXCERPT_CHARACTERS:
        return text
    return f"{text[:_EXCERPT_CHARACTERS]}... ({len(text)} characters)"


def quoted(name: str) -> str:
    """A name that a caller chose, in quotes, control characters made visible."""
    return excerpt(repr(name))
