"""A dialect: one way to ask this service and to be answered.

Each is one file: its routes, how it reads what it is asked, and how it writes answers and errors. It is named in
`serving.api.app` and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
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
        gives: type[BaseModel] | str = "application/json",
        streams: bool = False,
    ) -> None:
        """``takes`` and ``gives``: the bodies of request and answer, or the answer's media type.

        ``streams``: whether it answers with server-sent events where it is asked to.
        """
        super().__init__(path, handler, methods=[method])
        self.method, self.takes, self.gives, self.streams = method, takes, gives, streams


class Dialect(ABC):
    """Routes, and the form of answers and errors."""

    prefix: ClassVar[str]
    """Paths that begin with it are this dialect's, also those that do not exist; of several, the longest counts."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    @abstractmethod
    def routes(self) -> Sequence[Operation]:
        """What it can be asked."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> Response:
        """The answer to a request that went wrong."""
