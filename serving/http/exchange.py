"""One request and its answer: what an ASGI application sees of a connection."""

import asyncio
import http
import logging
from email.utils import formatdate
from functools import cache
from time import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message

from serving.errors import ServiceError
from serving.http.scope import DISCONNECT, Disconnect

if TYPE_CHECKING:
    from serving.http.connection import Connection

logger = logging.getLogger(__name__)

HIGH_WATER = 65_536
"""Bytes of a body that wait for the application; then no more are read."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_RESORT = b'{"type":"about:blank","title":"Internal error","status":500,"detail":"no answer was given"}'
"""The answer when the application gives none."""
COMMENT = b"3\r\n:\n\n\r\n"
"""A chunk of server-sent events that says nothing (WHATWG HTML, section 9.2.6)."""


@cache
def status_line(status: int) -> bytes:
    """The first line of an answer."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


@cache
def _date(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()


def date_line() -> bytes:
    """The header ``Date``, now."""
    if _date.cache_info().currsize > 60:
        _date.cache_clear()
    return _date(int(time()))


class Exchange:
    """A request whose head has come, and its answer."""

    def __init__(self, connection: "Connection", scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        """``keep_alive``: whether the client may send another one after it. ``expects``: it waits for 100 Continue."""
        self.scope = scope
        self.keep_alive = keep_alive
        self.received = False
        """Whether its body has come to its end."""
        self.started = self.answered = False
        """Whether the answer has begun to be sent, and has been sent."""
        self._connection = connection
        self._expects = expects
        self._body = bytearray()
        self._end_delivered = False
        self._disconnect: Disconnect = scope[DISCONNECT]
        self._failure: ServiceError | None = None
        self._changed = asyncio.Event()
        self._head: Message | None = None
        self._chunked = False
        self._remaining: int | None = None
        self._filler = b""

    # What the connection tells it.

    def feed(self, body: bytes) -> None:
        """Take the next part of its body."""
        if not self.answered:
            self._body += body
            self._changed.set()

    @property
    def full(self) -> bool:
        """Whether more of the body waits than is good."""
        return len(self._body) > HIGH_WATER and not self.answered

    def end(self) -> None:
        """Its body has come to its end."""
        self.received = True
        self._changed.set()

    def fail(self, error: ServiceError) -> None:
        """What is still to come of its body never will, because of ``error``; whoever waits for it is told."""
        self._failure, self.keep_alive = error, False
        self._changed.set()

    def disconnect(self) -> None:
        """Its client has gone, or says that it will send no more while its body is incomplete."""
        self.keep_alive = False
        self._disconnect.notify()
        self._changed.set()

    def probe(self) -> bool:
        """Send what a client that is still there takes no notice of; false when there is nothing such."""
        if self.scope["http_version"] != "1.1" or self.answered:
            return False
        if not self.started:
            self._connection.write(CONTINUE)
        elif self._filler:
            self._connection.write(self._filler)
        return not self.started or bool(self._filler)

    # What the application sees.

    async def run(self, app: ASGIApp) -> None:
        """Have ``app`` answer it."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.answered and not self._connection.lost:
                logger.error("%s %s was not answered to its end", self.scope["method"], self.scope["path"])
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%s %s failed", self.scope["method"], self.scope["path"])
        finally:
            if not self.answered and not self._connection.lost:
                self._give_up()

    async def receive(self) -> Message:
        """The next part of the body; after its end, word that the client has gone (ASGI, ``http.request``)."""
        if self._expects and not self.received and not self.started:
            self._expects = False
            self._connection.write(CONTINUE)
        while True:
            if self._body or (self.received and not self._end_delivered):
                body, self._body = bytes(self._body), bytearray()
                self._end_delivered = self.received
                self._connection.pause_or_resume()
                return {"type": "http.request", "body": body, "more_body": not self.received}
            if self._disconnect.happened or self.answered:
                return {"type": "http.disconnect"}
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def send(self, message: Message) -> None:
        """Take the answer's head, then its body (ASGI, ``http.response.start`` and ``.body``)."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        if message["type"] != "http.response.body" or self.answered or not (self._head or self.started):
            raise RuntimeError(f"{message['type']} is out of turn")
        await self._connection.flow.drained()
        if self._connection.lost:
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        # Head and body go together: a packet each would cost twice as much.
        parts = [] if self.started else self._begin()
        if self._remaining == 0:
            body = b""
        elif self._chunked:
            body = b"".join([b"%x\r\n" % len(body), body, b"\r\n"] if body else []) + (b"" if more else b"0\r\n\r\n")
        elif self._remaining is not None:
            self._remaining -= len(body)
        parts.append(body)
        self._connection.write(b"".join(parts))
        if not more:
            self.answered = True
            self._changed.set()
            if self._remaining:
                self._connection.abort()
                raise RuntimeError(f"the answer's body and its Content-Length differ by {self._remaining} bytes")
            self._connection.answered(self)

    def _begin(self) -> list[bytes]:
        """The head of the answer; RuntimeError when it is none."""
        assert self._head
        status, headers = self._head["status"], self._head.get("headers", [])
        bodiless = status in (204, 304) or self.scope["method"] == "HEAD"
        # A client that waits for 100 Continue may send its body after all, or not.
        closes = not self.keep_alive or (self._expects and not self.received) or self._connection.closes_after(self)
        lines, length, streams = [status_line(status), date_line()], None, False
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                closes = True
                continue
            elif name == b"content-type" and value.startswith(b"text/event-stream"):
                streams = True
            lines.append(b"%b: %b\r\n" % (name, value))
        if bodiless:
            self._remaining = 0
        elif length is not None:
            self._remaining = length
        elif self.scope["http_version"] == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
            self._filler = COMMENT if streams else b""
        else:
            closes = True  # only the connection's end tells where the body ends
        if closes:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if not len(lines) == head.count(b"\n") == head.count(b"\r"):
            raise RuntimeError("a header of the answer has a line break in it")
        self._head, self.started, self.keep_alive = None, True, not closes
        return [head]

    def _give_up(self) -> None:
        """End what the application has left unfinished: with a bare 500, or, amid an answer, with the connection."""
        if self.started:
            self._connection.abort()
            return
        self.started = self.answered = True
        self.keep_alive = False
        length = b"content-length: %d\r\n" % len(LAST_RESORT)
        kind = b"content-type: application/problem+json\r\nconnection: close\r\n\r\n"
        self._connection.write(b"".join([status_line(500), date_line(), length, kind, LAST_RESORT]))
        self._connection.answered(self)
