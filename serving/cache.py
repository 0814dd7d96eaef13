"""Key and value memory: a row a hypothesis, contiguous, only as deep as the longest row needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
GROWTH = 8
"""Rows added at a time, at least."""


def depth(positions: int) -> int:
    """The capacity that holds ``positions``: 24, 40, 56, 88, 136, …, about half as much again each time.

    Always an odd multiple of 8. Rows and heads lie one capacity apart, and when that is a power of two they fall onto
    the same few lines of the processor's caches: attention over 64 rows with 24 positions in room for 256 took twice
    as long as in room for 264.
    """
    capacity = 24
    while capacity < positions:
        capacity = (capacity * 3 // 2) // 16 * 16 + 8
    return capacity


class KeyValueCache:
    """The caches of the decoder graph by input name, fp32.

    ========================  ================================  ==================================
    ``self_key_0`` …          ``[rows, heads, written, d]``     keys and values of the target so far
    ``cross_key_0`` …         ``[rows, heads, read, d]``        those of the source
    ``last_key_0`` …          ``[rows, 1, heads · d]``          those of the source's last token
    ========================  ================================  ==================================

    The capacities ``written`` and ``read`` (`depth`) follow what the rows in use need. Memory grows in steps up to
    ``limit`` rows as deep as the longest sequence, is used again, and starts as zeros: what lies behind a row's valid
    length is never looked at, but must be finite.
    """

    def __init__(self, names: Sequence[str], heads: int, head_width: int, limit: int) -> None:
        self.limit = limit
        self.arrays: dict[str, Array] = {}
        self.layout = 0
        """Changes whenever the arrays are other ones than before."""
        self._heads, self._head_width = heads, head_width
        self._memory = {name: np.zeros(0, np.float32) for name in names}
        self._depths = {"self": depth(0), "cross": depth(0)}
        self._lay_out(0, 0, self._depths)

    @property
    def rows(self) -> int:
        """Rows there is room for now."""
        return len(next(iter(self.arrays.values())))

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(memory.nbytes for memory in self._memory.values())

    def grow(self, rows: int) -> None:
        """Make room for ``rows`` rows; what the others hold is kept. ValueError when that is over the limit."""
        if rows > self.limit:
            raise ValueError(f"{rows} rows are more than the limit of {self.limit}")
        if rows > self.rows:
            self._lay_out(min(self.limit, max(rows, 2 * self.rows, GROWTH)), self.rows, self._depths)

    def deepen(self, used: int, written: int, read: int) -> None:
        """Make room for ``written`` target and ``read`` source positions; the first ``used`` rows are kept."""
        depths = dict(self._depths)
        for kind, positions in (("self", written), ("cross", read)):
            needed = depth(positions)
            # Going down costs a copy like going up: only when half of it lies idle.
            if needed > depths[kind] or 2 * needed <= depths[kind]:
                depths[kind] = needed
        if depths != self._depths:
            self._lay_out(self.rows, used, depths)

    def _lay_out(self, rows: int, used: int, depths: dict[str, int]) -> None:
        for name, memory in self._memory.items():
            kind = name.split("_")[0]
            shape = (
                (rows, 1, self._heads * self._head_width)
                if kind == "last"
                else (rows, self._heads, depths[kind], self._head_width)
            )
            before = self.arrays.get(name)
            if before is not None and before.shape == shape:
                continue
            size = int(np.prod(shape))
            kept = None
            if before is not None and used:
                positions = min(before.shape[2], shape[2])
                kept = before[:used, :, :positions].copy()
            if size > memory.size:
                memory = self._memory[name] = np.zeros(size, np.float32)
            self.arrays[name] = memory[:size].reshape(shape)
            if kept is not None:
                self.arrays[name][:used, :, : kept.shape[2]] = kept
        self._depths = depths
        self.layout += 1

    def store(self, row: int, name: str, values: Array) -> None:
        """Put one source's ``values`` ``[heads, length, d]`` of the array ``name`` (``cross_…``) into ``row``."""
        self.arrays[name][row, :, : values.shape[1]] = values
        self.arrays[name.replace("cross", "last")][row, 0] = values[:, -1].reshape(-1)

    def copy(self, origins: Sequence[int], rows: Sequence[int], written: int, read: int) -> None:
        """Copy the first ``written`` target and ``read`` source positions of ``origins`` over ``rows``, all at once.

        ``read`` 0 leaves the source's part alone.
        """
        for name, array in self.arrays.items():
            positions = written if name.startswith("self") else read
            if positions:
                array[rows, :, :positions] = array[origins, :, :positions]
