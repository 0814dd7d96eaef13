"""Calls that are made side by side, each in a thread of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Lanes:
    """So many threads, of which whoever calls is the first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(max(1, count - 1), thread_name_prefix="lane")

    def __call__(self, calls: Sequence[Callable[[], Result]]) -> list[Result | Exception]:
        """Results or exceptions of at most as many ``calls`` as there are lanes, when all have ended.

        Whichever fails, none still writes to what others share with it.
        """
        others = [self._pool.submit(_outcome, call) for call in calls[1:]]
        return [_outcome(calls[0]), *(other.result() for other in others)]


def _outcome(call: Callable[[], Result]) -> Result | Exception:
    """What ``call`` returns, or raises."""
    try:
        return call()
    except Exception as error:
        return error
