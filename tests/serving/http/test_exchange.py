"""Applications that do wrong."""

import json
from collections.abc import Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.http.state import Limits
from serving.settings import Settings
from tests.service import free_port
from tests.serving.conftest import listening, wait_until
from tests.serving.http.raw import get, wire

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def saying(*messages: Message, then: Callable[[], None] = lambda: None) -> Callable[..., object]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        then()

    return app


def fail() -> None:
    raise RuntimeError("nobody thought of this")


@pytest.mark.parametrize(
    "app",
    [
        saying(),
        saying(START),
        saying(then=fail),
        saying(START, then=fail),
        saying(body(b"first")),
        saying(start((b"x", b"a\r\nevil: 1")), body(b"")),
        saying(start((b"x", b"a\rb")), body(b"")),
        saying(start((b"x", b"a\nb")), body(b"")),
    ],
)
def test_an_answer_that_has_not_begun_is_a_500_and_the_connection_ends(app: Callable[..., object]) -> None:
    port = free_port()
    with listening(app, port) as ingress, wire(port) as client:  # type: ignore[arg-type]
        client.send(get())
        answer = client.answer()
        assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
        assert {"type", "title", "status", "detail"} == set(json.loads(answer.body))
        assert client.closed()
        client.socket.close()
        wait_until(lambda: not ingress._state.connections)


@pytest.mark.parametrize(
    "app",
    [
        saying(START, body(b"part", more=True)),
        saying(START, body(b"part", more=True), then=fail),
        saying(start((b"content-length", b"9")), body(b"part")),
        saying(start((b"content-length", b"2")), body(b"part")),
    ],
)
def test_an_answer_that_breaks_off_ends_with_the_connection_and_never_looks_whole(app: Callable[..., object]) -> None:
    port = free_port()
    with listening(app, port) as ingress, wire(port) as client:  # type: ignore[arg-type]
        client.send(get() + get("/next"))
        received = b""
        try:
            while part := client.socket.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        assert b"0\r\n\r\n" not in received
        assert received.count(b"HTTP/1.1") <= 1
        wait_until(lambda: not ingress._state.connections)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_can_have_no_body_has_none(status: int) -> None:
    port = free_port()
    app = saying(start((b"content-length", b"4"), status=status), body(b"body"))
    with listening(app, port) as _, wire(port) as client:  # type: ignore[arg-type]
        client.send(get() + get())
        assert [client.answer().status for _ in range(2)] == [status, status]


def test_limits_are_what_is_set() -> None:
    assert Limits.of(Settings()) == Limits(request_seconds=60, idle_seconds=100, head_bytes=32_768)
    assert Limits.of(Settings(timeout=5, keep_alive=7)) == Limits(request_seconds=5, idle_seconds=7)
