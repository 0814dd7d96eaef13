"""Steps that are bound to their buffers, kept because binding costs about as much as a small step."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Bound = TypeVar("Bound")
MOST_BOUND = 128
"""Kept at one time, 30 KiB each; those used longest ago go first."""


class Bindings(Generic[Bound]):
    """What has been bound, by everything that it depends on."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, Bound] = {}

    def get(self, key: Hashable, bind: Callable[[], Bound]) -> tuple[Bound, bool]:
        """What is bound for ``key``, and whether ``bind`` had to be called for it."""
        bound = self.kept.pop(key, None)
        if fresh := bound is None:
            bound = bind()
            if len(self.kept) == MOST_BOUND:
                del self.kept[next(iter(self.kept))]
        assert bound is not None
        self.kept[key] = bound
        return bound, fresh

    def clear(self) -> None:
        """Keep nothing."""
        self.kept.clear()
