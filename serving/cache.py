"""Key and value memory: a row a sentence being decoded, contiguous, grown in steps, never given back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
GROWTH = 8
"""Rows added at a time, at least."""


class KeyValueCache:
    """The caches of the decoder graph by input name, ``[rows, heads, capacity, head_width]`` fp32 each.

    Rows 0 to n - 1 are in use; a row is freed by moving the last one into its place. Fresh rows are zeros: what lies
    behind a row's valid length is never looked at, but must be finite.
    """

    def __init__(self, names: list[str], heads: int, head_width: int, capacity: int, limit: int) -> None:
        self.limit = limit
        self._shape = (heads, capacity, head_width)
        self.arrays: dict[str, Array] = {name: np.zeros((0, *self._shape), np.float32) for name in names}

    @property
    def rows(self) -> int:
        """Rows allocated so far."""
        return len(next(iter(self.arrays.values())))

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows, at most the limit; what the others hold is kept."""
        if rows > self.limit:
            raise ValueError(f"{rows} rows are more than the limit of {self.limit}")
        if rows > self.rows:
            grown = min(self.limit, max(rows, 2 * self.rows, GROWTH))
            for name, array in self.arrays.items():
                self.arrays[name] = np.zeros((grown, *self._shape), np.float32)
                self.arrays[name][: len(array)] = array

    def store(self, name: str, row: int, values: Array) -> None:
        """Put ``values`` ``[heads, length, head_width]`` at the start of ``row``."""
        self.arrays[name][row, :, : values.shape[1]] = values

    def move(self, origin: int, row: int, lengths: dict[str, int]) -> None:
        """Copy the first ``lengths[name]`` positions of row ``origin`` over ``row``."""
        for name, array in self.arrays.items():
            array[row, :, : lengths[name]] = array[origin, :, : lengths[name]]
