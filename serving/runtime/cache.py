"""Key and value memory: a row a hypothesis, at addresses that never change."""

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import capacity
from serving.runtime.batch import CacheCopy
from serving.runtime.encoded_batch import EncodedBatch

Array = NDArray[Any]
SHALLOW = 64
"""Positions whose memory a row keeps when it is done: most sentences are shorter, and the next one writes there."""
GIVEN_BACK_AT_ONCE = 4 << 20
"""Bytes that are given back between two steps, at most (but one row always): a millisecond or two of the kernel's."""


class KeyValueCache:
    """The caches of the decoder graph by input name, of ``dtype`` float32, float16 or int8.

    ========================  ==================================  ==================================
    ``self_key_0`` …          ``[rows, heads, capacity, d]``      keys and values of the target so far
    ``cross_key_0`` …         ``[rows, heads, capacity, d]``      those of the source
    ``last_key_0`` …          ``[rows, 1, heads · d]``            those of the source's last token
    ========================  ==================================  ==================================

    There is room for every row to be as long as the model allows, so no row is ever moved for another to grow. Room
    takes memory only from where it is first written on. A row that was longer than `SHALLOW` has its memory given back
    when it is done (`give_back`). It starts as zeros, and so it does again then: what lies behind a row's valid length
    is never looked at, but must be finite.
    """

    def __init__(
        self, names: Sequence[str], heads: int, head_width: int, rows: int, positions: tuple[int, int], dtype: str
    ) -> None:
        """``positions``: the longest target and source."""
        self.rows = rows
        shapes = {
            "self": (rows, heads, capacity(positions[0]), head_width),
            "cross": (rows, heads, capacity(positions[1]), head_width),
            "last": (rows, 1, heads * head_width),
        }
        self._memory: dict[str, mmap.mmap] = {}
        self._blocks: dict[str, Array] = {}
        self.arrays: dict[str, Array] = {}
        for kind, shape in shapes.items():
            # Each kind's arrays lie in one block, so that one copy serves all layers.
            names_of_kind = [name for name in names if name.startswith(kind)]
            numbers = len(names_of_kind) * math.prod(shape)
            memory = self._memory[kind] = _pages(numbers, dtype)
            block = self._blocks[kind] = np.frombuffer(memory, dtype, numbers).reshape(len(names_of_kind), *shape)
            self.arrays.update(zip(names_of_kind, block, strict=True))
        self._depths = np.zeros(rows, np.int32)
        """Positions of each row that may have been written since its memory was last given back."""
        for block in self._blocks.values():
            self._begin(block)

    @staticmethod
    def _begin(block: Array) -> None:
        """Have the memory where each head of ``block`` ``[…, heads, capacity, d]`` begins.

        It would stall the first step of many rows. Further positions come to new pages at different steps, since heads
        lie an odd number of positions apart.
        """
        block[..., :1, :] = 0

    def store(self, row: int, encoded: EncodedBatch, index: int, length: int) -> None:
        """Put one source into ``row``: the first ``length`` positions at ``index`` of what was ``encoded``."""
        self._depths[row] = max(self._depths[row], length)
        for name, values in encoded.caches.items():
            self.arrays[name][row, :, :length] = values[index, :, :length]
            self.arrays[name.replace("cross", "last")][row, 0] = values[index, :, length - 1].reshape(-1)

    def forget(self, row: int) -> None:
        """See `serving.runtime.batch.Cache`; what was there is harmless."""

    def copy(self, copies: Sequence[CacheCopy]) -> None:
        """Make ``copies``, none of which reads a row that another writes."""
        for origin, row, written, read in copies:
            self._depths[row] = max(self._depths[row], written, read)
            for kind, positions in (("self", written), ("cross", read)):
                if positions:
                    block = self._blocks[kind]
                    block[:, row, :, :positions] = block[:, origin, :, :positions]
            if read:
                self._blocks["last"][:, row] = self._blocks["last"][:, origin]

    def written(self, positions: Array) -> None:
        """Take note that a step has written the first ``positions`` ``[n]`` of the target in the first n rows."""
        depths = self._depths[: len(positions)]
        np.maximum(depths, positions, out=depths)

    def deep(self) -> list[int]:
        """The rows that hold memory beyond what a row keeps when it is done."""
        rows: list[int] = np.flatnonzero(self._depths > SHALLOW).tolist()
        return rows

    def give_back(self, rows: Sequence[int], most: float = GIVEN_BACK_AT_ONCE) -> None:
        """Give the memory of unused ``rows`` back to the system, one after another until it is ``most`` bytes."""
        given = 0
        for row in rows:
            if given > 0 and given + self.row_bytes > most:
                break
            for kind in ("self", "cross"):
                for array in self._blocks[kind]:
                    self._discard(kind, array[row])
                self._begin(self._blocks[kind][:, row])
            self._depths[row] = 0
            given += self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Memory of one row at its longest."""
        return sum(block.nbytes for block in self._blocks.values()) // self.rows

    def _discard(self, kind: str, part: Array) -> None:
        """Let the whole pages of ``part``, contiguous memory of a ``kind``, be zeros that take no memory."""
        begin = part.ctypes.data - self._blocks[kind].ctypes.data
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._memory[kind].madvise(mmap.MADV_DONTNEED, first, size)


def _pages(numbers: int, dtype: str) -> mmap.mmap:
    """Memory for so many numbers: zeros, which take no room before they are written."""
    # Linux then does not count what may never be written to.
    unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved
    memory = mmap.mmap(-1, max(1, numbers * np.dtype(dtype).itemsize), flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # one number would take two megabytes
    return memory
