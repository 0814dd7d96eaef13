"""What every dialect shares: reading a body within its limit, work that ends when its client goes, problems as answers,
stage timings as a header, server-sent events."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.errors import BUG, Invalid, Malformed, MethodNotAllowed, NotFound, ServiceError, TooLarge
from serving.offload import unless_short

logger = logging.getLogger(__name__)

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
SHORT_BODY = 65_535
"""Bytes: JSON is read faster than texts are worked on."""
LINGER_SECONDS = 5.0
"""How long a body that is too large is still taken."""
FAULTS_TOLD = 10
"""Unknown members that are named one by one."""


async def read(request: Request, schema: type[Body], limit: int) -> Body:
    """The request's body as ``schema``; TooLarge past ``limit`` bytes, Malformed when not JSON, else Invalid."""
    received, more = bytearray(), True
    while more:
        part, more = await _part(request)
        received += part
        announced = request.headers.get("content-length", "") if more else ""
        if announced.isdigit() and int(announced) > limit:
            await _read_on(request)
            raise TooLarge("body", int(announced), limit, "bytes")
        if len(received) > limit:
            if more:
                await _read_on(request)
            raise TooLarge("body", len(received), limit, "bytes or more" if more else "bytes")
    return await unless_short(len(received), lambda: _parse(received, schema), SHORT_BODY)


async def _part(request: Request) -> tuple[bytes, bool]:
    """What has come of the body since the last, and whether more will; ClientDisconnect when it breaks off.

    `Request.stream`, which does the same, is the slower for being a generator, and nearly every body is one part.
    """
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _read_on(request: Request) -> None:
    """Take what still comes of a body that is refused, for a while: a client that is cut off sees no answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await _part(request))[1]:
                pass


def _parse(content: bytearray, schema: type[Body]) -> Body:
    try:
        parsed = from_json(content)
    except ValueError as error:
        raise Malformed(f"body: not JSON in UTF-8: {error}") from None
    if isinstance(parsed, dict) and len(parsed) > FAULTS_TOLD + len(schema.model_fields):
        raise Invalid([("body", f"has {len(parsed)} members; it takes {', '.join(schema.model_fields)}")])
    try:
        return schema.model_validate(parsed)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    raise Invalid([(".".join(map(str, fault["loc"])) or "body", fault["msg"]) for fault in faults])


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled (and this raises ClientDisconnect) as soon as the client goes away.

    Only after the body was read to its end.
    """
    task, gone = asyncio.current_task(), False
    assert task

    async def cancel_when_gone() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = task.cancel()

    watcher = asyncio.create_task(cancel_when_gone())
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else wants the task to end must not be overheard.
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


def milliseconds(stages: Mapping[str, float], begin: float) -> dict[str, float]:
    """``stages`` (seconds) as clients are told them.

    And ``total``: all that has passed since ``begin``, on the clock of ``time.perf_counter``.
    """
    told = {**stages, "total": time.perf_counter() - begin}
    return {stage: round(1000 * seconds, 2) for stage, seconds in told.items()}


def answer(body: BaseModel | dict[str, Any], stages: Mapping[str, float], begin: float) -> Response:
    """``body`` as JSON, without a model's members that are None, with `milliseconds` as ``Server-Timing`` (W3C Server
    Timing)."""
    content = to_json(body, exclude_none=True, inf_nan_mode="null")
    timing = ", ".join([f"{stage};dur={value}" for stage, value in milliseconds(stages, begin).items()])
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


Event = tuple[str, BaseModel]
"""A name and what the event says."""


async def stream(request: Request, events: AsyncGenerator[Event, None]) -> Response:
    """``events`` as server-sent events (WHATWG HTML, section 9.2), each with one JSON value.

    What goes wrong before the first of them is raised, to be answered as anywhere; what goes wrong later becomes an
    ``error`` event with the problem. ``events`` is closed when the client goes away.
    """
    first = await while_connected(request, anext(events))
    return EventStream(first, events)


class EventStream(StreamingResponse):
    """An answer of server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, first: Event, following: AsyncGenerator[Event, None]) -> None:
        self._following = following
        # Proxies on the way must pass each event on at once (the second is nginx's), and keep none.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_written(first, following), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; however that ends, what makes the events ends too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._following.aclose()


async def _written(first: Event, following: AsyncIterator[Event]) -> AsyncIterator[str]:
    yield _event(first[0], first[1].model_dump_json(exclude_none=True))
    try:
        async for name, body in following:
            yield _event(name, body.model_dump_json(exclude_none=True))
    except ServiceError as error:
        yield _event("error", json.dumps(error.problem()))
    except Exception:
        # Raised on, it would break the connection off, and whoever reads would take the answer for incomplete.
        logger.exception("a stream failed")
        yield _event("error", json.dumps(ServiceError(BUG).problem()))


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"  # JSON has no line breaks of its own


def problem(error: ServiceError) -> JSONResponse:
    """``error`` as application/problem+json (RFC 9457)."""
    return JSONResponse(error.problem(), error.status, error.headers, media_type="application/problem+json")


def _went_wrong(error: Exception) -> Response:
    """The answer to a request whose work ended in ``error``."""
    if isinstance(error, ClientDisconnect):
        error = Malformed("body: the connection ended before its end")
    return problem(error if isinstance(error, ServiceError) else ServiceError(BUG))


Endpoint = Callable[[Request], Awaitable[Response]]


class Application(FastAPI):
    """Answers every error as a problem, and what is asked most often without a word to anybody else.

    Between a server and a FastAPI route stand half a dozen layers, none of which these routes have a use for.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.direct: dict[str, Endpoint] = {}
        """By path: what answers a POST to it. FastAPI has these routes too, for its description of them and for whoever
        comes by another path, such as one below a root path."""
        _install(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        endpoint = self.direct.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive, send))
        except (ServiceError, ClientDisconnect) as error:
            response = _went_wrong(error)
        except Exception as error:
            await _went_wrong(error)(scope, receive, send)
            raise  # for the server's log
        await response(scope, receive, send)


def _install(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(Exception)
    async def went_wrong(request: Request, error: Exception) -> Response:
        return _went_wrong(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "other methods")
            refused = problem(MethodNotAllowed(f"{request.url.path} takes {allowed}, not {request.method}"))
            refused.headers.update(error.headers or {})
            return refused
        return problem(NotFound(f"there is no {request.url.path}"))
