"""What the connections of one server have in common."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from serving.settings import Settings

if TYPE_CHECKING:
    from serving.http.connection import Connection


@dataclass(frozen=True)
class Limits:
    """What a connection may take."""

    request_seconds: float
    """From a request's first byte to its last."""
    idle_seconds: float
    """Without a request; and without taking any of its answer."""
    head_bytes: int = 32 * 1024
    """Of a request's line and headers."""

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Those that ``settings`` give."""
        return cls(request_seconds=settings.timeout, idle_seconds=settings.keep_alive)


@dataclass
class ServerState:
    """An application, and who is connected to it."""

    app: ASGIApp
    limits: Limits
    leaving_since: float | None = None
    """Since when, on the event loop's clock, clients are asked to close their connections; None: they are not."""
    connections: set["Connection"] = field(default_factory=set)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    """One for each request that is being answered."""
