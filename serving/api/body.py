"""Reading what a request says, and working on it while its client is there."""

import asyncio
import codecs
import json
from collections.abc import Awaitable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from serving.errors import Invalid, Malformed
from serving.http.scope import DISCONNECT, Disconnect
from serving.offload import unless_short

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
SHORT_BODY = 65_535
"""Bytes: JSON is read faster than texts are worked on."""
FAULTS_NAMED = 10
"""Unknown members that are named one by one."""
LONGEST_NAME = 100
"""Characters of a member's name that are said again."""
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""Byte order marks with which texts of some editors and shells begin; UTF-32's little one begins like UTF-16's."""


async def read(request: Request, schema: type[Body]) -> Body:
    """The request's body as ``schema``; Malformed when it is not JSON or breaks off, else Invalid."""
    received, more = bytearray(), True
    while more:
        # `Request.stream`, which does the same, is the slower for being a generator, and nearly every body is one part.
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Malformed("body: the connection ended before its end")
        received += message.get("body", b"")
        more = message.get("more_body", False)
    return await unless_short(len(received), lambda: _parse(received, schema), SHORT_BODY)


def _parse(content: bytearray, schema: type[Body]) -> Body:
    try:
        parsed = from_json(_decoded(content) if content.startswith(MARKS) else content)
    except ValueError as error:
        raise Malformed(f"body: not JSON in UTF-8: {error}") from None
    if isinstance(parsed, dict) and len(parsed) > FAULTS_NAMED + len(schema.model_fields):
        raise Invalid([("body", f"has {len(parsed)} members; it takes {', '.join(schema.model_fields)}")])
    try:
        return schema.model_validate(parsed)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    raise Invalid([(_field(fault["loc"]), fault["msg"]) for fault in faults])


def _field(path: tuple[int | str, ...]) -> str:
    """Where a fault is; a stranger's own name for it may be as long as the body."""
    name = ".".join(map(str, path)) or "body"
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _decoded(content: bytearray) -> str:
    """A text that begins with a byte order mark, without it."""
    return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled (and this raises ClientDisconnect) as soon as the client goes away.

    Only after the body was read to its end.
    """
    task, gone = asyncio.current_task(), False
    assert task

    def cancel() -> None:
        nonlocal gone
        gone = task.cancel()

    disconnect: Disconnect | None = request.scope.get(DISCONNECT)
    watcher = None
    if disconnect is None:  # our own server tells of it; of another, a task has to ask
        disconnect = Disconnect()
        watcher = asyncio.create_task(_ask_for(disconnect, request))
    disconnect.set_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever else wants the task to end must not be overheard.
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        disconnect.set_callback(None)
        if watcher:
            watcher.cancel()


async def _ask_for(disconnect: Disconnect, request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    disconnect.notify()
