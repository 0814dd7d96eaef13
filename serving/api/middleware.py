"""What every request passes through, whatever it asks and whatever becomes of it."""

import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.inflater import Inflater
from serving.api.request_id import KNOWN_ID, new_id
from serving.errors import TooLarge
from serving.http.errors import UnsupportedEncoding
from serving.http.scope import REFUSAL
from serving.metrics import Metrics

logger = logging.getLogger(__name__)

ENCODINGS = "gzip, identity"
NO_ROUTE = "none"
"""The route of a request that has none: a path of a stranger's choice would be a new series of figures each time."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this name."""
    return next((value for key, value in scope["headers"] if key == name), None)


class RequestIds:
    """Gives every request an id, the client's own (``X-Request-Id``) where it has one, and says it in the answer."""

    def __init__(self, app: ASGIApp, in_answers: bool) -> None:
        """``in_answers``: whether answers say it; Serve's proxies do it themselves."""
        self.app, self.in_answers = app, in_answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the request's id (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = header(scope, b"x-request-id")
        request_id = given if given and KNOWN_ID.fullmatch(given) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id.decode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and self.in_answers:
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        await self.app(scope, receive, named)


class RequestCounts:
    """Counts every request by route, method and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count the answer (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            # Before it is sent: whoever has the answer can see that it is counted.
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self.metrics.count_request(route.path if route else NO_ROUTE, scope["method"], message["status"])
            await send(message)

        await self.app(scope, receive, counted)


class BodyLimit:
    """Bounds every body, and inflates those that are compressed with gzip, within the same bound.

    Whoever reads a body that is larger meets TooLarge; one that is compressed otherwise, UnsupportedEncoding.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit``: bytes."""
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose body is bounded (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
        encoding = b", ".join(encodings or [b"identity"]).decode("latin-1").strip().lower()
        announced = header(scope, b"content-length") or b""
        inflate = Inflater(self.limit) if encoding in ("gzip", "x-gzip") else None
        size = 0

        async def bounded() -> Message:
            nonlocal size
            if announced.isdigit() and int(announced) > self.limit:
                raise TooLarge("body", int(announced), self.limit, "bytes")
            if inflate is None and encoding != "identity":
                raise UnsupportedEncoding(encoding, ENCODINGS)
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self.limit:
                    more = message.get("more_body", False)
                    raise TooLarge("body", size, self.limit, "bytes or more" if more else "bytes")
                if inflate:
                    message["body"] = inflate(message.get("body", b""), not message.get("more_body", False))
            return message

        await self.app(scope, bounded, send)


class ErrorHandling:
    """Answers what cannot be read, and what goes wrong that nobody thought of, where all others see it."""

    def __init__(self, app: ASGIApp, refuse: Callable[[Scope, Exception], Response]) -> None:
        """``refuse`` makes an error an answer."""
        self.app, self.refuse = app, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, whatever happens (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if refused := scope.get(REFUSAL):
            return await self.refuse(scope, refused)(scope, receive, send)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            await send(message)
            begun = True

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise
            logger.exception("request %s failed", scope["state"]["request_id"])
            await self.refuse(scope, error)(scope, receive, send)
