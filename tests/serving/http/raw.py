"""HTTP written and read by hand."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.api.statuses import refusal_of
from serving.errors import Malformed, ServiceError
from serving.http.scope import REFUSAL


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection over which any bytes can be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        """All up to ``end``, which must come."""
        while end not in self.received:
            part = self.socket.recv(65536)
            assert part, self.received
            self.received += part
        head, _, self.received = self.received.partition(end)
        return head + end

    def answer(self, method: str = "GET") -> Answer:
        """The next answer; the standard library reads it."""
        response = HTTPResponse(_Replay(self), method=method)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, body)

    def closed(self, seconds: float = 5) -> bool:
        """Whether the server closes within ``seconds``, and sends nothing more."""
        self.socket.settimeout(seconds)
        try:
            return self.received + self.socket.recv(1) == b""
        except OSError:
            return False


class _Replay:
    """What `HTTPResponse` takes for a socket."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def makefile(self, mode: str) -> "_Replay":
        return self

    def readline(self, limit: int = -1) -> bytes:
        return self.wire.read_until(b"\n")

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self.wire.received) < size:
            part = self.wire.socket.recv(65536)
            if not part:
                break
            self.wire.received += part
        size = len(self.wire.received) if size < 0 else size
        content, self.wire.received = self.wire.received[:size], self.wire.received[size:]
        return content

    def flush(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    with socket.create_connection(("127.0.0.1", port), timeout=8) as connection:
        yield Wire(connection)


def post(path: str, body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    """A request with a body."""
    lines = [b"POST %b HTTP/%b" % (path.encode(), version), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def get(path: str = "/", *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, path.encode(), version), b"Host: x", *headers, b"", b""])


class Echo:
    """An application that answers with what it was told: method, path and body.

    Below ``/wait`` it waits to be let go; ``/unread`` it answers without reading; ``/stream`` in two parts of which the
    second waits too; ``/early`` before it reads; ``/fill`` without end until it is let go. Errors are answered in plain text.
    """

    def __init__(self) -> None:
        self.go = False
        self.waiting = self.gone = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ServiceError as error:
            refusal = refusal_of(error)
            await Response(error.detail, refusal.status)(scope, receive, send)

    async def _fill(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.go:
            await send({"type": "http.response.body", "body": b"x" * 4000, "more_body": True})
            await asyncio.sleep(0.0005)
        await send({"type": "http.response.body", "body": b"end"})

    async def _answer_early(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        listening = asyncio.ensure_future(receive())
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"two"})
        listening.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope[REFUSAL]:
            raise scope[REFUSAL]
        if scope["path"] == "/fill":
            return await self._fill(send)
        if scope["path"] == "/early":
            return await self._answer_early(receive, send)
        path, body, more = scope["path"], b"", not scope["path"].startswith("/unread")
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                raise Malformed("the connection ended within the body")
            body += message["body"]
            more = message["more_body"]
        streams = path.startswith("/stream")
        kind = b"text/event-stream" if streams else b"text/plain"
        content = f"{scope['method']} {path} ".encode() + body
        headers = [(b"content-type", kind)]
        if not streams:
            headers.append((b"content-length", b"%d" % len(content)))
        start: Message = {"type": "http.response.start", "status": 200, "headers": headers}
        if streams:
            await send(start)
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        if path.startswith(("/wait", "/stream")):
            self.waiting += 1
            leaving = asyncio.ensure_future(receive())
            while not self.go and not leaving.done():
                await asyncio.sleep(0.001)
            if leaving.done():
                self.gone += 1
                return
            leaving.cancel()
        if not streams:
            await send(start)
        await send({"type": "http.response.body", "body": b"data: 2\n\n" if streams else content})
