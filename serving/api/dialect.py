"""A dialect: one way to ask this service and to be answered.

Each is one file: its routes, how it reads what it is asked, and how it writes answers and errors. It is named in
`serving.api.app` and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.api.statuses import Refusal
from serving.metrics import Metrics
from serving.registry import Registry

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Service:
    """What stands behind all dialects."""

    registry: Registry
    metrics: Metrics


class Operation(Route):
    """A route that is described in the OpenAPI document."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        takes: type[BaseModel] | None = None,
        gives: type[BaseModel] | None = None,
        media_type: str = "application/json",
        events: Mapping[str, type[BaseModel]] | None = None,
    ) -> None:
        """``takes`` and ``gives``: the bodies of request and answer; ``media_type``: the answer's.

        ``events``: the server-sent events, by name, that it answers with where it is asked to.
        """
        super().__init__(path, handler, methods=[method])
        self.method, self.takes, self.gives = method, takes, gives
        self.media_type, self.events = media_type, dict(events or {})
        self.dialect: Dialect | None = None
        """Whose it is; set by that."""


class Dialect(ABC):
    """Routes, and the form of answers and errors."""

    prefix: ClassVar[str]
    """Paths that begin with it are this dialect's, also those that do not exist; of several, the longest counts."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.routes = list(self.operations())
        """What it can be asked."""
        for route in self.routes:
            route.dialect = self

    @abstractmethod
    def operations(self) -> Sequence[Operation]:
        """What it can be asked; called once."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> Response:
        """The answer to a request that went wrong."""
