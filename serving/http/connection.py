"""One client's connection: HTTP/1.1 (RFC 9112) as strangers speak it.

uvicorn's protocol over the same parser drops the body of a request that offers an upgrade, keeps a connection for ever
that never sends a request, has no limits of time or size, takes a client that sends no more for one that has gone, and
answers what is no HTTP in plain text. Each of these is a matter of the connection's state, so the state is kept here.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import cast

from serving.errors import Malformed, ServiceError
from serving.http.departure import failed, looks
from serving.http.errors import RequestTimeout
from serving.http.exchange import Exchange
from serving.http.parser import Head, Parser
from serving.http.scope import UNREAD, Address, scope_of
from serving.http.shared import Shared

LINGER_SECONDS = 5.0
"""How long what a client still sends is taken after its answer: one that is cut off may not see the answer."""
AHEAD = 16
"""Requests that wait for the answer to one before them; then no more are read."""


class Connection(asyncio.Protocol):
    """Reads requests and has them answered, one after another."""

    def __init__(self, shared: Shared) -> None:
        self.lost = False
        """Whether nothing can be sent any more."""
        self._shared, self._limits = shared, shared.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = Parser(self, shared.limits.head_bytes)
        self._exchanges: deque[Exchange] = deque()
        """Those that are not answered yet; the first is being answered."""
        self._coming: Exchange | None = None
        """The one whose body is being read."""
        self._begun: float | None = None
        """When the request that is being read began."""
        self._deaf = False
        """Whether what comes is thrown away."""
        self._ended = False
        """Whether the client has said that it will send no more."""
        self._paused = False
        """Whether reading is."""
        self._writable: asyncio.Future[None] | None = None
        """Done when the client takes what it is sent again."""
        self._since = 0.0
        """When the last answer ended, or the client last took what it was sent."""
        self._linger_until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class says of itself that it is none
        # A client that has gone already has no name.
        self._client: Address = (transport.get_extra_info("peername") or ())[:2]
        self._server: Address = (transport.get_extra_info("sockname") or ())[:2]
        self._shared.connections.add(self)
        self._since = self._loop.time()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._deaf:
            return
        try:
            self._parser.feed(data)
        except ServiceError as error:
            if not self._deaf:  # what follows a last request is nobody's
                self._refuse(error)
        self._pause_or_resume()
        self._watch()

    def eof_received(self) -> bool:
        """The client sends no more; true when it may still want an answer."""
        self._ended = True
        if self._linger_until is not None:
            return False
        if self._coming:
            self._coming.leave()
            self._deaf = True
        elif self._begun is not None:
            self._refuse(Malformed("the request ended within its headers"))
        elif self._exchanges:
            self._probe()
        else:
            return False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """End what is under way for this client."""
        self.lost = True
        self._shared.connections.discard(self)
        for exchange in self._exchanges:
            exchange.leave()
        self._exchanges.clear()
        self._coming = None
        if self._timer:
            self._timer.cancel()
        self.resume_writing()
        self._parser.close()

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        self._writable = self._loop.create_future()
        self._since = self._loop.time()
        self._watch()

    def resume_writing(self) -> None:
        """It does again."""
        if self._writable:
            self._writable.set_result(None)
        self._writable = None

    # The parser's side.

    def begins(self) -> None:
        """A request begins."""
        if not self._deaf:
            self._begun = self._loop.time()

    def head(self, head: Head) -> None:
        """Have it answered, while its body may still come."""
        if not self._deaf:
            scope = scope_of(head, self._client, self._server)
            self._coming = Exchange(self, scope, head.keep_alive, head.expects_continue)
            self._start(self._coming)

    def body(self, part: bytes) -> None:
        """The next part of its body."""
        if self._coming:
            self._coming.feed(part)

    def ends(self) -> None:
        """It has come to its end."""
        if not (exchange := self._coming):
            return
        self._begun = self._coming = None
        self._deaf = not exchange.keep_alive
        exchange.end()
        if exchange.answered:
            self._go_on(exchange)

    # The exchange's side.

    def closes_after(self, exchange: Exchange) -> bool:
        """Whether the service is to end and ``exchange`` is the last that has come."""
        return self._shared.leaving and self._exchanges[-1] is exchange

    def write(self, data: bytes) -> None:
        """Send."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the client takes what it is sent, or has gone."""
        if self._writable:
            await asyncio.shield(self._writable)

    def body_taken(self) -> None:
        """There is room for more of it."""
        if self._paused:
            self._pause_or_resume()

    def answered(self, exchange: Exchange) -> None:
        """``exchange``, the first, is answered."""
        if self.lost:
            return
        self._exchanges.popleft()
        self._since = self._loop.time()
        if exchange is self._coming and exchange.keep_alive:
            # What still comes of its body is thrown away, for a while.
            self._linger_until = self._since + LINGER_SECONDS
        else:
            self._go_on(exchange)
        self._pause_or_resume()
        self._watch()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def close_when_idle(self) -> None:
        """End the connection unless a request is under way."""
        if not self._exchanges and not (self._coming and self._linger_until is None):
            self._transport.close()

    # One request after another.

    def _start(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._run(exchange)

    def _run(self, exchange: Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._shared.app))
        self._shared.tasks.add(task)
        task.add_done_callback(self._shared.tasks.discard)

    def _go_on(self, exchange: Exchange) -> None:
        """``exchange`` has been answered, and no more of it is read."""
        self._linger_until = None
        if not exchange.keep_alive and not exchange.received:
            self._linger()
        elif not exchange.keep_alive or (self._ended and not self._exchanges):
            self._transport.close()
        elif self._exchanges:
            self._run(self._exchanges[0])
        elif self._begun is not None:
            self._begun = self._since  # it could not be answered before

    def _linger(self) -> None:
        """Send no more, and throw away what comes until the client closes: to close first could break its answer."""
        self._deaf = True
        self._coming = self._begun = None
        if self._ended:
            self._transport.close()
            return
        self._linger_until = self._loop.time() + LINGER_SECONDS
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def _refuse(self, error: ServiceError) -> None:
        """Answer ``error`` to what cannot be read; nothing more is read."""
        self._deaf = True
        if self._coming and self._coming.answered:
            self._linger()
        elif self._coming:
            self._coming.fail(error)
        else:
            self._begun = None
            scope = scope_of(UNREAD, self._client, self._server, error)
            refused = Exchange(self, scope, keep_alive=False, expects=False)
            refused.fail(error)
            self._start(refused)

    def _probe(self) -> None:
        """Tell a client that sends no more from one that has gone."""
        if self._exchanges[0].probe():
            self._look(looks())
        else:
            self._transport.abort()

    def _look(self, waits: Iterator[float]) -> None:
        if self.lost or not self._exchanges:
            return
        if failed(self._transport.get_extra_info("socket").fileno()):
            self._transport.abort()
        else:
            self._loop.call_later(next(waits), self._look, waits)

    # Limits.

    def _pause_or_resume(self) -> None:
        """Read no further than the application does."""
        wanted = len(self._exchanges) > AHEAD or (self._coming is not None and self._coming.full)
        if wanted == self._paused or self._transport.is_closing():
            return
        self._paused = wanted
        if wanted:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _deadline(self) -> float | None:
        """When the client has to have done something; None while the application works."""
        if self._linger_until is not None:
            return self._linger_until
        if self._writable:
            return self._since + self._limits.idle_seconds
        if self._begun is not None and self._coming is (self._exchanges[0] if self._exchanges else None):
            return self._begun + self._limits.request_seconds
        return None if self._exchanges else self._since + self._limits.idle_seconds

    def _watch(self) -> None:
        """Wake up at the deadline. A timer that is due before it stays: nearly every request is over by then."""
        deadline = self._deadline()
        if deadline is None or (self._timer and self._timer_at <= deadline) or self.lost:
            return
        if self._timer:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(deadline, self._wake), deadline

    def _wake(self) -> None:
        self._timer, deadline = None, self._deadline()
        if deadline is None or self._loop.time() < deadline:
            self._watch()
        elif self._linger_until is not None or self._writable:
            self._transport.abort()
        elif self._begun is None:
            self._transport.close()
        else:
            part = "headers" if self._coming is None else "body"
            self._refuse(RequestTimeout(part, self._limits.request_seconds))
