"""A timer for a deadline that moves."""

import asyncio
from collections.abc import Callable


class Timer:
    """Calls when a deadline has passed that is asked for again and again, and seldom reached.

    To cancel and set a timer for every request would cost more than all else that is done about deadlines. So one that
    is due too early stays, and sees what the deadline is by then.
    """

    def __init__(self, deadline: Callable[[], float | None], expire: Callable[[], None]) -> None:
        """``deadline`` says when ``expire`` is to be called, on the event loop's clock; None: never, as things are."""
        self._deadline, self._expire = deadline, expire
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0

    def watch(self) -> None:
        """Take note that the deadline may have moved."""
        deadline = self._deadline()
        if deadline is None or (self._handle and self._due <= deadline):
            return
        self.cancel()
        self._handle, self._due = self._loop.call_at(deadline, self._wake), deadline

    def cancel(self) -> None:
        """Call no more."""
        if self._handle:
            self._handle.cancel()
        self._handle = None

    def _wake(self) -> None:
        self._handle, deadline = None, self._deadline()
        if deadline is not None and self._loop.time() >= deadline:
            self._expire()
        self.watch()
