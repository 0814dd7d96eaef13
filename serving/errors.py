"""Everything that can go wrong on purpose: of which kind it is, and which field, limit and size it names.

How a client is told, with which status and in which form, is a matter of `serving.api`.
"""

from typing import Any, ClassVar

BUG = "this is a bug of the service; its log says more"
"""What a client is told of an error that is none of the others."""


class ServiceError(Exception):
    """An error that a client is told about."""

    kind: ClassVar[str] = "Internal error"
    """What has happened, in two or three words."""

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        """What a program can read of it: ``field``, ``limit``, ``size``, …"""


class Malformed(ServiceError):
    """What came cannot be read at all."""

    kind = "Malformed request"


class TooLarge(ServiceError):
    """Over a limit: body, list, text or tokens. Carries ``field``, ``limit``, ``size`` and ``unit``."""

    kind = "Too large"

    def __init__(self, field: str, size: int, limit: int, unit: str) -> None:
        super().__init__(
            f"{field} has {size:,} {unit}; the limit is {limit:,}", field=field, size=size, limit=limit, unit=unit
        )


class Invalid(ServiceError):
    """It can be read, but it is not what is taken here. Carries ``errors``: a field and a reason each."""

    kind = "Invalid request"

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__(
            "; ".join(f"{field}: {reason}" for field, reason in errors),
            errors=[{"field": field, "reason": reason} for field, reason in errors],
        )


class QueueFull(ServiceError):
    """More work waits than can be done in reasonable time."""

    kind = "Too many requests"

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(
            f"{waiting:,} tokens are waiting and the limit is {limit:,}; try again in {retry_after} s",
            size=waiting,
            limit=limit,
            unit="tokens",
            retry_after=retry_after,
        )
        self.retry_after = retry_after
        """Seconds."""


class NotReady(ServiceError):
    """The engine is starting, stopping or broken."""

    kind = "Not ready"


class DeadlineExceeded(ServiceError):
    """The request's time was up before its work was done."""

    kind = "Deadline exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done within {seconds:.3g} s", limit=seconds, unit="seconds")
