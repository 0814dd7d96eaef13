"""A small HTTP client for timing: it sends one request again and again, and costs little itself."""

import re
import socket
from types import TracebackType
from typing import Self

PATIENCE = 60.0
"""Seconds after which an answer is given up."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class AnswerError(RuntimeError):
    """An answer is not 200, has no Content-Length, or broke off."""


class Client:
    """Sends one POST request to a service on this machine, again and again."""

    def __init__(self, port: int, route: str, body: bytes, keep: bool = True) -> None:
        """Prepare a request; every answer is read from one connection or, unless ``keep``, from a new one each."""
        self._port, self._keep = port, keep
        self._connection: socket.socket | None = None
        closing = "" if keep else "Connection: close\r\n"
        head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{closing}"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def ask(self) -> bytes:
        """Send the request; returns the body of its answer. AnswerError when that is not a whole answer of 200."""
        if not self._connection:
            self._connection = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(self._request)
        body = _body(self._connection)
        if not self._keep:
            self.close()
        return body


def _body(connection: socket.socket) -> bytes:
    received = _part(connection)
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += _part(connection)
    head, body = received[: end + 2], received[end + 4 :]
    if not head.startswith(b"HTTP/1.1 200 "):
        raise AnswerError(f"the service answers {head.splitlines()[0].decode(errors='replace')!r}, not 200")
    length = _LENGTH.search(head)
    if not length:
        raise AnswerError("the answer has no Content-Length")
    while len(body) < int(length[1]):
        body += _part(connection)
    return body


def _part(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise AnswerError("the connection ended before the answer did")
    return part
