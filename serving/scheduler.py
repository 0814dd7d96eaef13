"""Whom to encode, whom to let wait, whom to drop: plain Python over plain data."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass
class Ticket:
    """What the scheduler knows of a job."""

    cost: int
    """Tokens it reads and is expected to write: what it counts for in the queue."""
    source_tokens: int
    decodes: bool
    """Whether it takes a row after it is encoded."""
    deadline: float
    """On the clock of ``time.monotonic``."""
    cancelled: bool = False


T = TypeVar("T", bound=Ticket)


class Scheduler(Generic[T]):
    """First come, first served, within the rows that are free and the padded tokens one turn may encode."""

    def __init__(self, rows: int, encode_tokens: int) -> None:
        self.rows, self.encode_tokens = rows, encode_tokens
        self.running: list[T] = []
        """Jobs being decoded; a job's index is its row."""
        self.encoding: list[T] = []
        """Jobs admitted in this turn: no longer waiting, not yet decoded."""
        self._waiting: deque[T] = deque()
        self.waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self.encoding) + len(self.running)

    def add(self, jobs: Iterable[T]) -> None:
        """Put ``jobs`` at the end of the queue."""
        for job in jobs:
            self._waiting.append(job)
            self.waiting_tokens += job.cost

    def admit(self) -> list[T]:
        """Take from the queue what this turn encodes, in order of arrival.

        The first job always fits; further ones while rows are free and the batch, padded to its longest source, stays
        within ``encode_tokens``. The caller encodes them and calls `start`.
        """
        admitted = self.encoding = []
        free, longest = self.rows - len(self.running), 0
        while self._waiting:
            job = self._waiting[0]
            longest = max(longest, job.source_tokens)
            if (job.decodes and not free) or (admitted and longest * (len(admitted) + 1) > self.encode_tokens):
                break
            free -= job.decodes
            admitted.append(self._waiting.popleft())
            self.waiting_tokens -= job.cost
        return admitted

    def start(self, jobs: Iterable[T]) -> None:
        """Give those of the encoded jobs that decode the next free rows, in order; the others are done."""
        self.running.extend(jobs)
        self.encoding = []

    def retire(self, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Free ``rows``; yields ``(origin, row)`` for each row whose contents the caller must move to keep them packed.

        The moves must be made in the order given, each before the next is asked for.
        """
        for row in sorted(rows, reverse=True):
            last = self.running.pop()
            if row < len(self.running):
                self.running[row] = last
                yield len(self.running), row

    def drop(self, now: float) -> list[T]:
        """Take from the queue the jobs that are cancelled or whose deadline has passed."""
        gone = [job for job in self._waiting if job.cancelled or job.deadline <= now]
        if gone:
            self._waiting = deque(job for job in self._waiting if not (job.cancelled or job.deadline <= now))
            self.waiting_tokens -= sum(job.cost for job in gone)
        return gone

    def gone(self, now: float) -> list[int]:
        """Rows whose jobs are cancelled or past their deadline."""
        return [row for row, job in enumerate(self.running) if job.cancelled or job.deadline <= now]

    def clear(self) -> list[T]:
        """Take out everything."""
        everything = [*self._waiting, *self.encoding, *self.running]
        self._waiting.clear()
        self.encoding = []
        self.running.clear()
        self.waiting_tokens = 0
        return everything
