"""Which HTTP status each error becomes."""

import http
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.errors import BUG, DeadlineExceeded, Invalid, Malformed, NotReady, QueueFull, ServiceError, TooLarge
from serving.http.errors import (
    HeadersTooLarge,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    UnsupportedCoding,
    UnsupportedEncoding,
    UnsupportedVersion,
)

STATUSES: Mapping[type[ServiceError], int] = {
    Malformed: 400,
    NotFound: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    TooLarge: 413,
    UnsupportedEncoding: 415,
    Invalid: 422,
    QueueFull: 429,
    HeadersTooLarge: 431,
    ServiceError: 500,
    UnsupportedCoding: 501,
    NotReady: 503,
    DeadlineExceeded: 504,
    UnsupportedVersion: 505,
}
CLIENT_GONE = 499
"""No client reads it; it tells whoever counts."""


@dataclass(frozen=True)
class Refusal:
    """An error as an answer; a dialect writes it in its own form."""

    error: ServiceError
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal_of(error: Exception) -> Refusal:
    """The answer to a request that ended in ``error``."""
    if isinstance(error, HTTPException):
        refused = ServiceError(error.detail)
        refused.kind = http.HTTPStatus(error.status_code).phrase  # type: ignore[misc]
        return Refusal(refused, error.status_code, error.headers or {})
    if isinstance(error, ClientDisconnect):
        return Refusal(ServiceError("the client has gone"), CLIENT_GONE)
    if not isinstance(error, ServiceError):
        error = ServiceError(BUG)
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    return Refusal(error, status, _headers(error))


def _headers(error: ServiceError) -> dict[str, str]:
    """What belongs to an answer besides."""
    if isinstance(error, QueueFull):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allowed}
    if isinstance(error, UnsupportedEncoding):
        return {"Accept-Encoding": error.supported}
    return {}
