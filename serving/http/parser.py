"""Requests from bytes: httptools' parser, with what it does not do itself."""

import urllib.parse
from dataclasses import dataclass
from typing import Protocol

import httptools

from serving.errors import Malformed
from serving.http.errors import HeadersTooLarge, MethodNotAllowed, UnsupportedCoding, UnsupportedVersion


@dataclass(frozen=True, slots=True)
class Head:
    """A request's first line and headers."""

    version: str
    """Of HTTP: "1.0" or "1.1"."""
    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    keep_alive: bool
    """Whether the client may send another request after it."""
    expects_continue: bool
    """Whether the client waits for ``100 Continue`` before it sends the body."""


class Listener(Protocol):
    """Who is told of what a parser finds."""

    def begins(self) -> None:
        """A request begins."""

    def head(self, head: Head) -> None:
        """Its head has come."""

    def body(self, part: bytes) -> None:
        """The next part of its body has come."""

    def ends(self) -> None:
        """It has come to its end."""


class Parser:
    """Tells a listener of the requests in what it is fed.

    A request that offers another protocol (``Upgrade``) is read as if it did not. Trailers are dropped. After an error
    it is of no use any more.
    """

    def __init__(self, listener: Listener, limit: int) -> None:
        """``limit``: bytes of a head at most."""
        self._listener, self._limit = listener, limit
        self.method: str | None = None
        """Of the request that is being read, as soon as it is known."""
        self._parser = httptools.HttpRequestParser(self)
        self._within_head = self._within_body = self._upgrading = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._size = self._unfinished = self._begun = 0
        self._heard = False

    def feed(self, data: bytes) -> None:
        """Read on; raises a ServiceError when it cannot be read."""
        between_requests = not (self._within_head or self._within_body)
        self._begun, self._heard = 0, False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            # What a callback raised is the context of what the parser raises.
            raise error.__context__ or Malformed(f"the request is not HTTP/1.1: {error}") from None
        # httptools keeps a header or a trailer to itself until its end, however long that takes.
        if between_requests and self._begun == 1 and self._within_head:
            self._unfinished = len(data) - self._size
        elif self._heard:
            self._unfinished = 0
        else:
            self._unfinished += len(data)
        self._check(self._size + self._unfinished)

    def close(self) -> None:
        """Let go of the parser, which knows this: they would lie about until somebody looks for garbage."""
        del self._parser

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]

    def _without_upgrade(self) -> bytes:
        """The head that has been read, without its offer, for a new parser."""
        line = b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
        headers = [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([line, *headers, b"", b""])

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise HeadersTooLarge("headers", size, self._limit, "bytes or more")

    # What httptools calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._upgrading:
            self._listener.begins()
        self._begun += 1
        self.method = None
        self._heard = True
        self._within_head, self._upgrading = True, False
        self._url, self._headers, self._size, self._unfinished = b"", [], 0, 0

    def on_url(self, url: bytes) -> None:
        """The next part of its target."""
        self.method = self._parser.get_method().decode()
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body, a trailer."""
        self._heard = True
        self._size += len(name) + len(value) + 4
        self._check(self._size)
        if self._within_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._check(self._size + len(self._url))
        method = self._parser.get_method()
        if self._parser.should_upgrade():
            if method == b"CONNECT":
                raise MethodNotAllowed(self._url.decode("latin-1"), "CONNECT", ("GET", "HEAD", "POST"))
            self._upgrading = True
            return
        self._within_head, self._within_body = False, True
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise UnsupportedVersion(version)
        current = version == "1.1"
        named = dict(self._headers)
        if current and [name for name, _ in self._headers].count(b"host") != 1:
            raise Malformed("the request has no Host, or more than one")
        if (coding := named.get(b"transfer-encoding", b"chunked")).lower() != b"chunked":
            raise UnsupportedCoding(coding.decode("latin-1"))
        path, raw_path, query = self._target()
        keep_alive = current and self._parser.should_keep_alive()
        waits = current and named.get(b"expect", b"").lower() == b"100-continue"
        self._listener.head(Head(version, method.decode(), path, raw_path, query, self._headers, keep_alive, waits))

    def on_body(self, part: bytes) -> None:
        """The next part of its body."""
        self._heard = True
        self._listener.body(part)

    def on_chunk_header(self) -> None:
        """The size of the body's next chunk has come, with whatever extends it."""
        self._heard = True

    def on_message_complete(self) -> None:
        """It has come to its end."""
        self._heard = True
        if not self._upgrading:
            self._within_body = False
            self._listener.ends()

    def _target(self) -> tuple[str, bytes, bytes]:
        """Path, the same as it was sent, and query."""
        try:
            url = httptools.parse_url(self._url)
            raw_path = url.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise Malformed("the request's target is not a path") from None
        return urllib.parse.unquote(path) if "%" in path else path, raw_path, url.query or b""
