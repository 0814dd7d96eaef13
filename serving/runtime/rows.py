"""Which row of a step is whose: slots in use have rows from 0 on, whoever joins and leaves."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Slot:
    """One hypothesis' place in a decoder batch, which alone knows its row and moves it; -1 when it is released."""

    __slots__ = ("row",)

    def __init__(self, row: int) -> None:
        self.row = row


class Continuation(NamedTuple):
    """How the hypotheses of one search go on: each from one of its slots, with a token."""

    slots: Sequence[Slot]
    parents: Sequence[int]
    """For every hypothesis that goes on: the index in ``slots`` of the one that it continues."""
    tokens: Sequence[int]


class Copy(NamedTuple):
    """Contents of row ``origin`` that belong into ``row`` as well."""

    origin: int
    row: int
    with_source: bool
    """Whether ``row`` lacks the source too, which hypotheses of one search share."""


class Rows:
    """The slots by row.

    Copies that are returned together may be made in any order, or at once: none reads a row that another writes.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        """By row; one that has been freed since they were packed keeps its last."""
        self._free: list[int] = []
        """A heap."""
        self._used = 0

    def __len__(self) -> int:
        """Slots in use; may be asked from any thread."""
        return self._used

    def in_use(self, row: int) -> bool:
        """Whether a slot has ``row``."""
        return row < len(self.slots) and self.slots[row].row == row

    @property
    def holes(self) -> list[int]:
        """Rows that have been freed and not been filled since."""
        return self._free

    def place(self) -> Slot:
        """A new slot: in a row that has been freed, the first of them, or else at the end. Not between two `follow`."""
        self._used += 1
        return self._new()

    def follow(self, slots: Sequence[Slot], parents: Sequence[int]) -> tuple[list[Slot], list[Copy]]:
        """Let a search's hypotheses go on from those of its ``slots`` at the indexes ``parents``; frees the others.

        Returns their slots, and the copies that this takes. The first that continues a hypothesis keeps its slot.
        """
        if len(parents) == len(slots) == 1:
            return list(slots), []
        kept = set(parents)
        spare = [slot for index, slot in enumerate(slots) if index not in kept]
        following, copies = [], []
        for parent in parents:
            if parent in kept:
                kept.remove(parent)
                slot = slots[parent]
            else:
                grows = not spare
                slot = self._new() if grows else spare.pop()
                copies.append(Copy(slots[parent].row, slot.row, with_source=grows))
            following.append(slot)
        self._used += len(following) - len(slots) + len(spare)
        self.release(spare)
        return following, copies

    def release(self, slots: Sequence[Slot]) -> None:
        """Free the rows of ``slots``."""
        for slot in slots:
            heapq.heappush(self._free, slot.row)
            slot.row = -1
        self._used -= len(slots)

    def pack(self) -> list[Copy]:
        """Fill the freed rows with the last ones; returns the copies that this takes."""
        if not self._free:
            return []
        free = set(self._free)
        count = len(self.slots) - len(free)
        last = [row for row in range(count, len(self.slots)) if row not in free]
        copies = []
        for origin, row in zip(last, sorted(row for row in free if row < count), strict=True):
            slot = self.slots[row] = self.slots[origin]
            slot.row = row
            copies.append(Copy(origin, row, with_source=True))
        del self.slots[count:]
        self._free = []
        return copies

    def _new(self) -> Slot:
        if self._free:
            row = heapq.heappop(self._free)  # of all, the least that packing would have to move
            slot = self.slots[row] = Slot(row)
        else:
            slot = Slot(len(self.slots))
            self.slots.append(slot)
        return slot
