"""Clients that send no more: are they still there?

A client that has shut down its half of a connection and waits for the answer, and one that has gone, look alike until
something is sent to them: the system of the one that has gone answers that nobody is there, and the socket fails.
"""

import select
from collections.abc import Iterator

LOOKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds from one look at a socket to the next: the answer takes as long as the way there and back."""


def looks() -> Iterator[float]:
    """Seconds to wait before each look; the last are a second each, without end."""
    yield from LOOKS
    while True:
        yield 1.0


def failed(socket: int) -> bool:
    """Whether a ``socket`` (a file descriptor) has failed, or both sides have closed it."""
    poll = select.poll()
    poll.register(socket, 0)  # errors are told unasked
    return bool(poll.poll(0))
