"""How a service is told to end."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

DOUBLE_SECONDS = 0.5
"""A signal that comes so soon after the first is the same one, which somebody has passed on as well."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """SIGINT and SIGTERM: the first asks for an orderly end, a second one ends everything at once."""

    def __init__(self) -> None:
        self.asked = False
        self.interrupts = False
        """Whether the first raises KeyboardInterrupt in the main thread, besides."""
        self.at_once: Callable[[], None] = lambda: None
        """What is still to be done when everything ends at once."""
        self._first = 0.0
        # A handler may run in the middle of anything, so it takes no lock.
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self.listen()

    def listen(self) -> None:
        """Take signals from now on, whoever took them before."""
        for number in SIGNALS:
            signal.signal(number, self._take)
        # The system may give a signal to any thread. Python handles it in the main one, which must wake up for that.
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def wait(self) -> None:
        """Return when an end has been asked for."""
        while not self.asked:
            os.read(self._woken, 1)

    @staticmethod
    def wait_for(ended: Callable[[], bool], seconds: float) -> None:
        """Return when something has ``ended``, or after so many ``seconds``; a signal is taken meanwhile.

        It would not be while the main thread waits for a lock, if another thread was given it.
        """
        deadline = time.monotonic() + seconds
        while not ended() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._first > DOUBLE_SECONDS:
                try:
                    self.at_once()
                finally:
                    os._exit(128 + number)
            return
        self._first = time.monotonic()
        self.asked = True
        if self.interrupts:
            raise KeyboardInterrupt
