"""A request to be sent, and what became of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One request to be sent."""

    due: float
    """Seconds from the beginning."""
    kind: str
    """What it is called in figures."""
    route: str
    body: Mapping[str, Any]
    tokens: int = 0
    """Target tokens it asks for."""


class Outcome(NamedTuple):
    """One request."""

    kind: str
    due: float
    """When it was to be sent, in seconds from the beginning."""
    seconds: float
    """From then to the end of the answer: a client that is late counts against the service, as a user would."""
    status: int
    """Of the answer; 0 when there was none."""
    tokens: int = 0
    """Target tokens asked for."""
