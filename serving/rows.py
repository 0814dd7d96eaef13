"""Which row of a step belongs to whom: rows in use are packed from 0 on, whoever joins and leaves."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from serving.scheduler import Ticket

T = TypeVar("T", bound=Ticket)


class Copy(NamedTuple):
    """Contents of row ``origin`` that belong into ``row`` as well."""

    origin: int
    row: int
    fresh: bool
    """Whether ``row`` holds nothing of this job yet: not even what its other rows share."""


class Rows(Generic[T]):
    """The owners of the rows in use. A job's own list of them (``places``) follows the order of its hypotheses.

    Copies and moves that are returned together may be made in any order, or at once: none reads a row that another
    writes.
    """

    def __init__(self) -> None:
        self.owners: list[T] = []
        """By row; one that has been freed since they were packed keeps its last."""
        self._holes: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        """Rows in use; may be asked from any thread."""
        return self._used

    def used(self, row: int) -> bool:
        """Whether somebody owns ``row``."""
        return row < len(self.owners) and row not in self._holes

    def place(self, job: T) -> int:
        """Give ``job`` its first row: one that has been freed, or a new one at the end. Not between two `follow`."""
        if self._holes:
            row = min(self._holes)  # the least that then has to be moved
            self._holes.remove(row)
            self.owners[row] = job
        else:
            row = len(self.owners)
            self.owners.append(job)
        job.places = [row]
        self._used += 1
        return row

    def follow(self, job: T, parents: Sequence[int]) -> list[Copy]:
        """Let hypotheses of ``job`` go on, each from the one at its index in ``parents``; the others' rows are freed.

        Whoever can stays in the row of its parent. Rows that a beam grows into are new ones at the end.
        """
        if len(parents) == len(job.places) == 1:
            return []
        before, kept = job.places, set()
        places = [-1] * len(parents)
        for index, parent in enumerate(parents):
            if parent not in kept:
                kept.add(parent)
                places[index] = before[parent]
        spare = [row for parent, row in enumerate(before) if parent not in kept]
        copies = []
        for index, parent in enumerate(parents):
            if places[index] < 0:
                fresh = not spare
                if fresh:
                    self.owners.append(job)
                places[index] = len(self.owners) - 1 if fresh else spare.pop()
                copies.append(Copy(before[parent], places[index], fresh))
        job.places = places
        self._holes += spare
        self._used += len(parents) - len(before)
        return copies

    def release(self, job: T) -> None:
        """Free all rows of ``job``."""
        self._holes += job.places
        self._used -= len(job.places)
        job.places = []

    def pack(self) -> list[Copy]:
        """Fill the freed rows with the last ones; returns what has to be moved."""
        if not self._holes:
            return []
        holes = set(self._holes)
        count = len(self.owners) - len(holes)
        last = [row for row in range(count, len(self.owners)) if row not in holes]
        moves = []
        for origin, row in zip(last, sorted(hole for hole in holes if hole < count), strict=True):
            job = self.owners[row] = self.owners[origin]
            job.places[job.places.index(origin)] = row
            moves.append(Copy(origin, row, True))
        del self.owners[count:]
        self._holes = []
        return moves
