"""Clients that send no more: are they still there?

A client that has shut down its half of a connection and waits for the answer, and one that has gone, look alike until
something is sent to them: the system of the one that has gone answers that nobody is there, and the socket fails.
"""

import asyncio
import select
from collections.abc import Callable, Iterator

AT_FIRST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds from one look at a socket to the next: the answer takes as long as the way there and back."""
LATER = (0.001, 0.02, 0.2)

HANGUP_SECONDS = 0.05
"""From one look to the next at a client of which nothing is read."""


class Probe:
    """Looks again and again whether a client is there, and ends its connection when it is not."""

    def __init__(self, transport: asyncio.Transport, send: Callable[[], bool]) -> None:
        """``send`` sends what a client takes no notice of; false when nothing is wanted of this any more."""
        self._transport, self._send = transport, send
        self._loop = asyncio.get_running_loop()
        self._waits = intervals()
        self._look()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if _has_events(self._transport, 0):  # it has failed, or both sides have closed it
            self._transport.abort()
            return
        seconds, sends = next(self._waits)
        if not sends or self._send():
            self._loop.call_later(seconds, self._look)


def intervals() -> Iterator[tuple[float, bool]]:
    """Seconds from each look to the next, and whether to send something before.

    A client may go after it has taken what it was sent first. Some take few answers that are none, so each comes after
    twice the time of the one before.
    """
    sends, pause = True, 1.0
    for seconds in AT_FIRST:
        yield seconds, sends
        sends = False
    while True:
        yield pause, False
        pause *= 2
        yield LATER[0], True
        yield from ((seconds, False) for seconds in LATER[1:])


def when_hung_up(transport: asyncio.Transport, wanted: Callable[[], bool], call: Callable[[], object]) -> None:
    """``call`` when the client sends no more, as long as it is ``wanted``, although nothing is read."""
    if transport.is_closing() or not wanted():
        return
    if _has_events(transport, getattr(select, "POLLRDHUP", 0)):  # Linux alone can tell
        call()
    else:
        asyncio.get_running_loop().call_later(HANGUP_SECONDS, when_hung_up, transport, wanted, call)


def _has_events(transport: asyncio.Transport, events: int) -> bool:
    """Whether there is any of ``events`` at the socket, or an error, which is told unasked."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), events)
    return bool(poll.poll(0))
