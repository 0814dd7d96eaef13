"""What every dialect shares: reading a body within its limit, problems as answers, stage timings as a header."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serving.errors import Invalid, Malformed, MethodNotAllowed, NotFound, ServiceError, TooLarge

Body = TypeVar("Body", bound=BaseModel)
IN_THE_LOOP = 65_536
"""Bytes that are parsed at once; larger bodies go to a thread, so that others are answered meanwhile."""
FAULTS_TOLD = 10
"""Unknown members that are named one by one."""


async def read(request: Request, schema: type[Body], limit: int) -> Body:
    """The request's body as ``schema``; TooLarge past ``limit`` bytes, Malformed when not JSON, else Invalid."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge("body", int(announced), limit, "bytes")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise TooLarge("body", len(received), limit, "bytes or more")
    if len(received) < IN_THE_LOOP:
        return _parse(bytes(received), schema)
    return await asyncio.to_thread(_parse, bytes(received), schema)


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


def answer(body: BaseModel, stages: Mapping[str, float]) -> Response:
    """``body`` as JSON, with ``stages`` (seconds) as ``Server-Timing`` (milliseconds, W3C Server Timing)."""
    timing = ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in stages.items())
    content = body.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers={"Server-Timing": timing})


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
        return problem(ServiceError("this is a bug of the service; its log says more"))
