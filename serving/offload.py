"""Work beside the event loop, where that pays."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

SHORT = 4_000
"""Characters, or numbers, that are read or written in well under a millisecond."""
T = TypeVar("T")


async def unless_short(size: int, call: Callable[[], T], short: int = SHORT) -> T:
    """The result of ``call``, which works on ``size`` characters or numbers; ``short`` is the most that is little.

    A long one runs in a thread, or everybody else's answers would wait for it. A short one does not: to change threads
    and back costs more than it takes.
    """
    return call() if size <= short else await asyncio.to_thread(call)
