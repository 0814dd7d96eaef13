"""Key and value memory: a row a hypothesis, contiguous, only as deep as the longest row needs."""

from collections.abc import Mapping, Sequence
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
    """The caches of the decoder graph by input name, of ``dtype`` float32 or int8.

    ========================  ================================  ==================================
    ``self_key_0`` …          ``[rows, heads, written, d]``     keys and values of the target so far
    ``cross_key_0`` …         ``[rows, heads, read, d]``        those of the source
    ``last_key_0`` …          ``[rows, 1, heads · d]``          those of the source's last token
    ========================  ================================  ==================================

    The capacities ``written`` and ``read`` (`depth`) follow what the rows in use need. Memory grows in steps up to
    ``limit`` rows as deep as the longest sequence, is used again, and starts as zeros: what lies behind a row's valid
    length is never looked at, but must be finite.
    """

    def __init__(self, names: Sequence[str], heads: int, head_width: int, limit: int, dtype: str) -> None:
        self.limit = limit
        self.arrays: dict[str, Array] = {}
        self.layout = 0
        """Changes whenever the arrays are other ones than before."""
        self._names = {kind: [name for name in names if name.startswith(kind)] for kind in ("self", "cross", "last")}
        self._heads, self._head_width = heads, head_width
        # Each kind's arrays lie in one block, so that one copy serves all layers.
        self._memory = {kind: np.zeros(0, dtype) for kind in self._names}
        self._blocks: dict[str, Array] = {}
        self._depths = {"self": depth(0), "cross": depth(0)}
        self._lay_out(0, 0, self._depths)

    @property
    def rows(self) -> int:
        """Rows there is room for now."""
        return self._blocks["self"].shape[1]

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
            # Going down costs a copy like going up: only when most of it lies idle.
            if needed > depths[kind] or 3 * needed <= depths[kind]:
                depths[kind] = needed
        if depths != self._depths:
            self._lay_out(self.rows, used, depths)

    def _lay_out(self, rows: int, used: int, depths: dict[str, int]) -> None:
        by_head = {kind: (rows, self._heads, positions, self._head_width) for kind, positions in depths.items()}
        shapes = by_head | {"last": (rows, 1, self._heads * self._head_width)}
        for kind, names in self._names.items():
            before, shape = self._blocks.get(kind), (len(names), *shapes[kind])
            if before is not None and before.shape == shape:
                continue
            kept = None
            if before is not None and used:
                kept = before[:, :used, :, : shape[3]].copy()
            size = int(np.prod(shape))
            if size > self._memory[kind].size:
                self._memory[kind] = np.zeros(size, self._memory[kind].dtype)
            block = self._blocks[kind] = self._memory[kind][:size].reshape(shape)
            if kept is not None:
                block[:, :used, :, : kept.shape[3]] = kept
            self.arrays.update(zip(names, block, strict=True))
        self._depths = depths
        self.layout += 1

    def store(self, row: int, caches: Mapping[str, Array], index: int, length: int) -> None:
        """Put one source into ``row``: the first ``length`` positions at ``index`` of ``caches`` (``cross_key_0`` …).

        Their arrays are ``[batch, heads, source, d]``.
        """
        for name, values in caches.items():
            self.arrays[name][row, :, :length] = values[index, :, :length]
            self.arrays[name.replace("cross", "last")][row, 0] = values[index, :, length - 1].reshape(-1)

    def copy(self, origin: int, row: int, written: int, read: int) -> None:
        """Copy the first ``written`` target and ``read`` source positions of row ``origin`` over ``row``.

        ``read`` 0 leaves the source's part alone.
        """
        for kind, positions in (("self", written), ("cross", read)):
            if positions:
                block = self._blocks[kind]
                block[:, row, :, :positions] = block[:, origin, :, :positions]
        if read:
            self._blocks["last"][:, row] = self._blocks["last"][:, origin]
