"""What every dialect shares: reading a body within its limit, work that ends when its client goes, problems as answers,
stage timings as a header, server-sent events."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.errors import Invalid, Malformed, MethodNotAllowed, NotFound, ServiceError, TooLarge
from serving.offload import unless_short

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
SHORT_BODY = 65_535
"""Bytes: JSON is read faster than texts are worked on."""
LINGER_SECONDS = 5.0
"""How long a body that is too large is still taken."""
BUG = "this is a bug of the service; its log says more"
FAULTS_TOLD = 10
"""Unknown members that are named one by one."""


async def read(request: Request, schema: type[Body], limit: int) -> Body:
    """The request's body as ``schema``; TooLarge past ``limit`` bytes, Malformed when not JSON, else Invalid."""
    announced, arriving = request.headers.get("content-length", ""), request.stream()
    if announced.isdigit() and int(announced) > limit:
        await _read_on(arriving)
        raise TooLarge("body", int(announced), limit, "bytes")
    received = bytearray()
    async for chunk in arriving:
        received += chunk
        if len(received) > limit:
            await _read_on(arriving)
            raise TooLarge("body", len(received), limit, "bytes or more")
    return await unless_short(len(received), lambda: _parse(bytes(received), schema), SHORT_BODY)


async def _read_on(arriving: AsyncIterator[bytes]) -> None:
    """Take what still comes of a body that is refused, for a while: a client that is cut off sees no answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in arriving:
                pass


def _parse(content: bytes, schema: type[Body]) -> Body:
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


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled (and this raises ClientDisconnect) as soon as the client goes away.

    Only after the body was read to its end.
    """
    task = asyncio.ensure_future(work)

    async def cancel_when_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.ensure_future(cancel_when_gone())
    try:
        return await task
    except asyncio.CancelledError:
        if watcher.done():
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


def answer(body: BaseModel, stages: Mapping[str, float], begin: float) -> Response:
    """``body`` as JSON, with `milliseconds` as ``Server-Timing`` (W3C Server Timing)."""
    content = body.model_dump_json(exclude_none=True)
    timing = ", ".join(f"{stage};dur={value}" for stage, value in milliseconds(stages, begin).items())
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
        yield _event("error", json.dumps(ServiceError(BUG).problem()))
        raise


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"  # JSON has no line breaks of its own


def problem(error: ServiceError) -> JSONResponse:
    """``error`` as application/problem+json (RFC 9457)."""
    return JSONResponse(error.problem(), error.status, error.headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as a problem."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return problem(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "other methods")
            refused = problem(MethodNotAllowed(f"{request.url.path} takes {allowed}, not {request.method}"))
            refused.headers.update(error.headers or {})
            return refused
        return problem(NotFound(f"there is no {request.url.path}"))

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        return problem(Malformed("body: the connection ended before its end"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return problem(ServiceError(BUG))
