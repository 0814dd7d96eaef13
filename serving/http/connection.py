"""One client's connection: HTTP/1.1 (RFC 9112) as strangers speak it.

uvicorn's protocol over the same parser drops the body of a request that offers an upgrade, keeps a connection for ever
that never sends a request, has no limits of time or size, takes a client that sends no more for one that has gone, and
answers what is no HTTP in plain text. Each of these is a matter of the connection's state, so the state is kept here.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import replace
from typing import cast

from serving.errors import Malformed, ServiceError
from serving.http.errors import RequestTimeout
from serving.http.exchange import Exchange
from serving.http.flow import Flow, unsent
from serving.http.parser import Head, Parser
from serving.http.probe import Probe, when_hung_up
from serving.http.scope import UNREAD, Address, scope_of
from serving.http.state import ServerState
from serving.http.timer import Timer

LINGER_SECONDS = 5.0
"""How long a client may pause in what it still sends after its answer; one that is cut off may not see the answer."""
AHEAD = 16
"""Requests that wait for the answer to one before them; then no more are read."""


class Connection(asyncio.Protocol):
    """Reads requests and has them answered, one after another."""

    def __init__(self, state: ServerState) -> None:
        self.lost = False
        """Whether nothing can be sent any more."""
        self._state, self._limits = state, state.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = Parser(self, state.limits.head_bytes)
        self._timer = Timer(self._deadline, self._expire)
        self._exchanges: deque[Exchange] = deque()
        """Those that are not answered yet; the first is being answered."""
        self._receiving: Exchange | None = None
        """The one whose body is being read."""
        self._request_began: float | None = None
        """When the first byte came of the request that is being read."""
        self._discarding = False
        """Whether what comes is thrown away."""
        self._lingering: float | None = None
        """Until when at most what comes after an answer is thrown away."""
        self._half_closed = False
        """Whether the client has said that it will send no more."""
        self._paused = False
        """Whether reading is."""
        self.flow = Flow()
        self._active_at = 0.0
        """When the client last did something that it had to do: took part of its answer, all of it, or came."""

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the client's first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class says of itself that it is none
        # A client that has gone already has no name.
        self._client: Address = (transport.get_extra_info("peername") or ())[:2]
        self._server: Address = (transport.get_extra_info("sockname") or ())[:2]
        self._state.connections.add(self)
        self._active_at = self._loop.time()
        self._timer.watch()

    def data_received(self, data: bytes) -> None:
        """Read on in the request that is coming, or throw ``data`` away."""
        if self._lingering is not None:
            self._active_at = self._loop.time()
        if self._discarding:
            return
        try:
            self._parser.feed(data)
        except ServiceError as error:
            if not self._discarding:  # what follows a last request is nobody's
                self._refuse(error)
        self.pause_or_resume()
        self._timer.watch()

    def eof_received(self) -> bool:
        """Note that the client sends no more; true when it may still want an answer."""
        self._half_closed = True
        if self._lingering is not None:
            return False
        if self._receiving:
            self._receiving.disconnect()
            self._discarding = True
        elif self._request_began is not None:
            self._refuse(Malformed("the request ended within its headers"))
        if not self._exchanges:
            return False
        if self._exchanges[0].received:
            Probe(self._transport, self._probe)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """End what is under way for this client."""
        self.lost = True
        self._state.connections.discard(self)
        for exchange in self._exchanges:
            exchange.disconnect()
        self._exchanges.clear()
        self._receiving = None
        self._timer.cancel()
        self.resume_writing()
        self._parser.close()

    def pause_writing(self) -> None:
        """Note that the client does not take what it is sent."""
        self.flow.block()
        self._await_client()

    def resume_writing(self) -> None:
        """Note that the client takes what it is sent again."""
        self.flow.unblock()
        self._active_at = self._loop.time()

    # The parser calls these.

    def begins(self) -> None:
        """A request begins."""
        if not self._discarding:
            self._request_began = self._loop.time()

    def head(self, head: Head) -> None:
        """Have the request with ``head`` answered, while its body may still come."""
        if not self._discarding:
            scope = scope_of(head, self._client, self._server)
            self._receiving = Exchange(self, scope, head.keep_alive, head.expects_continue)
            self._start(self._receiving)

    def body(self, part: bytes) -> None:
        """Pass the next part of the request's body on."""
        if self._receiving:
            self._receiving.feed(part)

    def ends(self) -> None:
        """The request has come to its end."""
        if not (exchange := self._receiving):
            return
        self._request_began = self._receiving = None
        self._discarding = not exchange.keep_alive
        exchange.end()
        if exchange.answered:
            self._go_on(exchange)

    # Exchanges, and the server, call these.

    def closes_after(self, exchange: Exchange) -> bool:
        """Whether the service is to end and ``exchange`` is the last that has come."""
        return self._state.leaving_since is not None and self._exchanges[-1] is exchange

    def write(self, data: bytes) -> None:
        """Send ``data``, unless the connection is at its end."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def pause_or_resume(self) -> None:
        """Read no further than the application does."""
        wanted = len(self._exchanges) > AHEAD or (self._receiving is not None and self._receiving.full)
        if wanted != self._paused and not self._transport.is_closing():
            self._paused = wanted
            (self._transport.pause_reading if wanted else self._transport.resume_reading)()
            if wanted:  # else it would not be seen before all is read
                when_hung_up(self._transport, lambda: self._paused, lambda: Probe(self._transport, self._probe))

    def answered(self, exchange: Exchange) -> None:
        """Go on after ``exchange``, the first, which has been answered."""
        if self.lost:
            return
        self._exchanges.popleft()
        self._active_at = self._loop.time()
        if exchange is self._receiving and exchange.keep_alive:
            self._lingering = self._last_moment()
        else:
            self._go_on(exchange)
        self.pause_or_resume()
        self._timer.watch()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def close_when_idle(self) -> None:
        """End the connection unless a request is under way; one that is still coming has to come soon."""
        if not self._exchanges and not self._transport.is_closing():
            self._close()
        self._timer.watch()

    # One request after another.

    def _start(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._run(exchange)

    def _run(self, exchange: Exchange) -> None:
        task = self._loop.create_task(exchange.run(self._state.app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _go_on(self, exchange: Exchange) -> None:
        """Do what comes next: ``exchange`` has been answered, and no more of it is read."""
        self._lingering = None
        if not exchange.keep_alive:
            self._linger()
        elif self._half_closed and not self._exchanges:
            self._close()
        else:
            following = self._exchanges[0] if self._exchanges else None
            if self._request_began is not None and following is self._receiving:
                self._request_began = self._active_at  # it could not be read on before
            if following:
                self._run(following)

    def _linger(self) -> None:
        """Send no more, and throw away what comes until the client closes: to close first could break its answer."""
        self._lingering, self._discarding = self._last_moment(), True
        self._receiving = self._request_began = None
        if self._half_closed:
            self._close()
        elif not self._transport.is_closing():
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    def _last_moment(self) -> float:
        """When the request that is being read has to be at its end."""
        began = self._active_at if self._request_began is None else self._request_began
        return began + max(self._limits.request_seconds, LINGER_SECONDS)

    def _close(self) -> None:
        """End the connection when the client has taken what it has been sent."""
        self._transport.close()
        self._await_client()

    def _refuse(self, error: ServiceError) -> None:
        """Answer ``error`` to what cannot be read; nothing more is read."""
        self._discarding = True
        if self._receiving and self._receiving.answered:
            self._linger()
        elif self._receiving:
            self._receiving.fail(error)
        else:
            self._request_began = None
            head = replace(UNREAD, method=self._parser.method or UNREAD.method)  # an answer to HEAD has no body
            refused = Exchange(self, scope_of(head, self._client, self._server, error), False, False)
            refused.fail(error)
            self._start(refused)

    def _probe(self) -> bool:
        """Send the client whose request is being answered what it takes no notice of; false when there is none."""
        if self.lost or not self._exchanges:
            return False
        if not (sent := self._exchanges[0].probe()):
            self._transport.abort()
        return sent

    # Limits.

    def _await_client(self) -> None:
        """Begin to wait for the client to take what it has been sent."""
        self._active_at = self._loop.time()
        self.flow.moves(self._transport)
        self._timer.watch()

    @property
    def _awaits_client(self) -> bool:
        """Whether nothing can be done before the client takes what it has been sent."""
        if self.flow.blocked or self._transport.is_closing():
            return True
        return self._lingering is not None and unsent(self._transport) > 0

    def _deadline(self) -> float | None:
        """When the client has to have done something; None while the application works."""
        if self.lost:
            return None
        leaving = self._state.leaving_since
        if self._awaits_client:
            return self._active_at + (self._limits.idle_seconds if leaving is None else LINGER_SECONDS)
        if self._lingering is not None:
            return min(self._active_at + LINGER_SECONDS, self._lingering)
        if self._request_began is not None and self._receiving is (self._exchanges[0] if self._exchanges else None):
            deadline = self._request_began + self._limits.request_seconds
            return deadline if leaving is None else min(deadline, leaving + LINGER_SECONDS)
        return None if self._exchanges else self._active_at + self._limits.idle_seconds

    def _expire(self) -> None:
        if self._awaits_client and self.flow.moves(self._transport):
            self._active_at = self._loop.time()  # it is slow, but it goes on
        elif self._awaits_client or self._lingering is not None:
            self._transport.abort()
        elif self._request_began is None:
            self._close()
        else:
            self._refuse(RequestTimeout("body" if self._receiving else "headers", self._limits.request_seconds))
