import asyncio
import codecs
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from serving.api.body import read, while_connected
from serving.errors import Malformed


class Body(BaseModel):
    text: str


class Client:
    """Sends the parts of a body, and then nothing, or that it goes."""

    def __init__(self, *parts: bytes, goes: bool = False) -> None:
        last = len(parts) - (not goes)
        self._coming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": number < last} for number, part in enumerate(parts)
        ]
        self._goes = goes

    async def receive(self) -> Message:
        if self._coming:
            return self._coming.pop(0)
        if not self._goes:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    @property
    def request(self) -> Request:
        return Request({"type": "http", "headers": []}, self.receive)


JSON = '{"text": "Grüße 😀"}'


@pytest.mark.parametrize(
    "content",
    [
        JSON.encode(),
        json.dumps(json.loads(JSON)).encode(),
        codecs.BOM_UTF8 + JSON.encode(),
        JSON.encode("utf-16"),
        codecs.BOM_UTF16_BE + JSON.encode("utf-16-be"),
        JSON.encode("utf-32"),
        codecs.BOM_UTF32_BE + JSON.encode("utf-32-be"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_body_is_read_with_and_without_a_byte_order_mark_in_one_part_or_many(content: bytes, apart: bool) -> None:
    parts = [content[:3], b"", content[3:]] if apart else [content]
    assert asyncio.run(read(Client(*parts).request, Body)).text == "Grüße 😀"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"text"', b'{"text": "\xff"}', codecs.BOM_UTF8, b"\xff\xfe{", codecs.BOM_UTF16_LE + b"\x00\xd8{\x00"],
)
def test_what_is_no_json_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed, match="body: not JSON in UTF-8"):
        asyncio.run(read(Client(content).request, Body))


def test_a_body_that_breaks_off_is_malformed() -> None:
    with pytest.raises(Malformed, match="body: the connection ended before its end"):
        asyncio.run(read(Client(b'{"te', goes=True).request, Body))


class Waiting:
    """Work that does not end by itself; says whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def connected(client: Client, work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    return while_connected(client.request, work)


def test_work_ends_with_its_clients_connection() -> None:
    async def run() -> None:
        waiting = Waiting()
        with pytest.raises(ClientDisconnect):
            await connected(Client(goes=True), waiting())
        assert waiting.cancelled
        # Whoever asked goes on as if nothing had been cancelled.
        current = asyncio.current_task()
        assert current
        assert current.cancelling() == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


@pytest.mark.parametrize("goes", [False, True])
def test_work_that_is_cancelled_by_others_is_cancelled_whether_its_client_stays_or_not(goes: bool) -> None:
    async def run() -> None:
        waiting = Waiting()
        task = asyncio.create_task(connected(Client(goes=goes), waiting()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting.cancelled

    asyncio.run(run())


def test_nobody_watches_a_client_whose_work_is_done() -> None:
    async def run() -> None:
        assert await connected(Client(), asyncio.sleep(0.01, "done")) == "done"
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
