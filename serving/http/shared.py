"""What the connections of one server have in common."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

if TYPE_CHECKING:
    from serving.http.connection import Connection


@dataclass(frozen=True)
class Limits:
    """What a connection may take."""

    request_seconds: float = 60.0
    """From a request's first byte to its last."""
    idle_seconds: float = 100.0
    """Without a request; and without taking any of its answer."""
    head_bytes: int = 32 * 1024
    """Of a request's line and headers."""


@dataclass
class Shared:
    """An application, and who is connected to it."""

    app: ASGIApp
    limits: Limits
    leaving: bool = False
    """Whether clients are asked to close their connections."""
    connections: set["Connection"] = field(default_factory=set)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    """One for each request that is being answered."""
