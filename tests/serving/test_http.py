import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message

from serving.api import http
from serving.errors import QueueFull
from serving.schemas import TranslateResponse
from tests.service import fetch
from tests.serving.conftest import Api


class Body(BaseModel):
    number: int


async def work(request: Request) -> Response:
    body = await http.read(request, Body, 20)
    if body.number == 1:
        raise QueueFull(10, 5, 3)
    if body.number == 2:
        raise RuntimeError("nobody thought of this")
    return http.answer({"number": body.number}, {"work": 0.001}, 0.0)


def application() -> http.Application:
    app = http.Application()
    app.post("/work")(work)
    app.direct["/work"] = work
    return app


class Client:
    """Sends the parts of a body, and then nothing, or that it goes."""

    def __init__(self, *parts: bytes, goes: bool = False) -> None:
        last = len(parts) - (not goes)
        self._coming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": number < last} for number, part in enumerate(parts)
        ]
        self._goes, self.told = goes, list[Message]()

    async def receive(self) -> Message:
        if self._coming:
            return self._coming.pop(0)
        if not self._goes:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.told.append(message)

    def ask(self, app: http.Application, root: str = "", method: str = "POST") -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of what is answered."""
        scope = {"type": "http", "method": method, "path": f"{root}/work", "root_path": root, "query_string": b""}
        try:
            asyncio.run(app(scope | {"headers": [], "server": ("x", 80)}, self.receive, self.send))
        finally:
            start, *rest = self.told
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], json.loads(b"".join(each.get("body", b"") for each in rest)), headers


@pytest.mark.parametrize("root", ["", "/below"])
@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b'{"number": 3}'], 200),
        ([b'{"num', b"", b'ber": 3}'], 200),
        ([b'{"number": 1}'], 429),
        ([b'{"number": "x"}'], 422),
        ([b'{"number"'], 400),
        ([b'{"number": 33333333333}'], 413),
        ([b'{"number": 3333', b"333333333}", b" "], 413),
    ],
)
def test_an_answer_is_the_same_with_and_without_all_that_stands_between(
    root: str, parts: list[bytes], status: int
) -> None:
    found, content, headers = Client(*parts).ask(application(), root)
    assert found == status
    if status == 200:
        assert content == {"number": 3}
        assert headers["server-timing"].startswith("work;dur=1.0, total;dur=")
    else:
        assert headers["content-type"] == "application/problem+json"
        assert content["status"] == status
    assert headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize("root", ["", "/below"])
def test_a_bug_is_answered_and_told_to_the_server(root: str) -> None:
    client = Client(b'{"number": 2}')
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        client.ask(application(), root)
    start, body = client.told
    assert start["status"] == 500
    assert json.loads(body["body"])["detail"] == http.BUG


@pytest.mark.parametrize("root", ["", "/below"])
def test_a_body_that_breaks_off_is_malformed(root: str) -> None:
    status, content, _ = Client(b'{"num', goes=True).ask(application(), root)
    assert (status, content["detail"]) == (400, "body: the connection ended before its end")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"beam_size": 3, "alternatives": 2, "log_probabilities": True},
        {"sampling": {"seed": 5}, "max_tokens": 3, "log_probabilities": True},
    ],
)
def test_a_translation_is_written_as_it_is_described(api: Api, asked: dict[str, Any]) -> None:
    answer = fetch(f"{api.url}/v1/translate", json.dumps({"text": ["Hello.", "One. Two."]} | asked).encode())
    body = TranslateResponse.model_validate_json(answer.content)
    assert json.loads(body.model_dump_json(exclude_none=True)) == answer.json
    assert body.seed == asked.get("sampling", {}).get("seed")
    for each in body.translations:
        assert (each.alternatives is not None) == ("alternatives" in asked)
        assert (each.log_probabilities is not None) == ("log_probabilities" in asked)


def test_another_method_is_named_with_what_is_allowed() -> None:
    status, content, headers = Client(b"").ask(application(), method="GET")
    assert (status, headers["allow"]) == (405, "POST")
    assert "takes POST, not GET" in content["detail"]


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
    return http.while_connected(Request({"type": "http"}, client.receive, client.send), work)


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
