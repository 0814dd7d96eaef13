"""Everything that can go wrong on purpose, and the HTTP status each becomes."""

from typing import Any, ClassVar

BUG = "this is a bug of the service; its log says more"
"""What a client is told of an error that is none of the others."""


class ServiceError(Exception):
    """An error a client is told about as application/problem+json (RFC 9457)."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        """Further members of the problem: ``field``, ``limit``, ``size``, …"""

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        return {}

    def problem(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }


class Malformed(ServiceError):
    """The body is not JSON in UTF-8."""

    status, title = 400, "Malformed request"


class NotFound(ServiceError):
    """No such route."""

    status, title = 404, "Not found"


class MethodNotAllowed(ServiceError):
    """The route exists, but not for this method."""

    status, title = 405, "Method not allowed"


class TooLarge(ServiceError):
    """Over a limit: body, list, text or tokens. Carries ``field``, ``limit``, ``size`` and ``unit``."""

    status, title = 413, "Too large"

    def __init__(self, field: str, size: int, limit: int, unit: str) -> None:
        super().__init__(
            f"{field} has {size:,} {unit}; the limit is {limit:,}", field=field, size=size, limit=limit, unit=unit
        )


class Invalid(ServiceError):
    """Well-formed, but not what the route takes. Carries ``errors``: a field and a reason each."""

    status, title = 422, "Invalid request"

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__(
            "; ".join(f"{field}: {reason}" for field, reason in errors),
            errors=[{"field": field, "reason": reason} for field, reason in errors],
        )


class QueueFull(ServiceError):
    """More work waits than can be done in reasonable time."""

    status, title = 429, "Too many requests"

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(
            f"{waiting:,} tokens are waiting and the limit is {limit:,}; try again in {retry_after} s",
            size=waiting,
            limit=limit,
            unit="tokens",
            retry_after=retry_after,
        )
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` in seconds."""
        return {"Retry-After": str(self.retry_after)}


class NotReady(ServiceError):
    """The engine is starting, stopping or broken."""

    status, title = 503, "Not ready"


class DeadlineExceeded(ServiceError):
    """The request's time was up before its work was done."""

    status, title = 504, "Deadline exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done within {seconds:.3g} s", limit=seconds, unit="seconds")
