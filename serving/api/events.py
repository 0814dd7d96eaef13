"""Answers of server-sent events (WHATWG HTML, section 9.2), each with one JSON value."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.api.body import while_connected
from serving.errors import BUG, ServiceError

logger = logging.getLogger(__name__)

Event = tuple[str, BaseModel]
"""A name and what the event says."""
Describe = Callable[[ServiceError], str]
"""An error as JSON."""


async def stream(request: Request, events: AsyncGenerator[Event, None], describe: Describe) -> Response:
    """``events`` as an answer.

    What goes wrong before the first of them is raised, to be answered as anywhere; what goes wrong later becomes an
    ``error`` event. ``events`` is closed when the client goes away.
    """
    first = await while_connected(request, anext(events))
    return EventStream(first, events, describe)


class EventStream(StreamingResponse):
    """The answer."""

    media_type = "text/event-stream"

    def __init__(self, first: Event, following: AsyncGenerator[Event, None], describe: Describe) -> None:
        self._following = following
        # Proxies on the way must pass each event on at once (the second is nginx's), and keep none.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_written(first, following, describe), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; however that ends, what makes the events ends too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._following.aclose()


async def _written(first: Event, following: AsyncIterator[Event], describe: Describe) -> AsyncIterator[str]:
    yield _event(first[0], first[1].model_dump_json(exclude_none=True))
    try:
        async for name, body in following:
            yield _event(name, body.model_dump_json(exclude_none=True))
    except ServiceError as error:
        yield _event("error", describe(error))
    except Exception:
        # Raised on, it would break the connection off, and whoever reads would take the answer for incomplete.
        logger.exception("a stream failed")
        yield _event("error", describe(ServiceError(BUG)))


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"  # JSON has no line breaks of its own
