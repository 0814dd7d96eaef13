"""What every dialect shares: reading a body within its limit, problems as answers, stage timings as a header."""

from collections.abc import Mapping
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serving.errors import Invalid, Malformed, MethodNotAllowed, NotFound, ServiceError, TooLarge

Body = TypeVar("Body", bound=BaseModel)


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
    try:
        return schema.model_validate_json(bytes(received))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        raise Malformed(f"body: {errors[0]['msg']}")
    raise Invalid([(".".join(map(str, fault["loc"])) or "body", fault["msg"]) for fault in errors])


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
