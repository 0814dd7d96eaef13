"""Whom to encode, whom to let wait, whom to drop: plain Python over plain data."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar


@dataclass(eq=False)
class Ticket:
    """What the scheduler knows of a job."""

    cost: int
    """Tokens it reads and is expected to write: what it counts for in the queue."""
    source_tokens: int
    rows: int
    """The most rows it takes after it is encoded; 0 when there is nothing to decode."""
    deadline: float
    """On the clock of ``time.monotonic``."""
    cancelled: bool = False
    places: list[int] = field(default_factory=list)
    """The rows it holds, in the order of its hypotheses."""

    def gone(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or self.deadline <= now


T = TypeVar("T", bound=Ticket)


class Scheduler(Generic[T]):
    """First come, first served, within the rows that are free and the padded tokens one turn may encode."""

    def __init__(self, rows: int, encode_tokens: int) -> None:
        self.rows, self.encode_tokens = rows, encode_tokens
        self.running: list[T] = []
        """Jobs being decoded."""
        self.encoding: list[T] = []
        """Jobs admitted in this turn: no longer waiting, not yet decoded."""
        self._waiting: deque[T] = deque()
        self.waiting_tokens = 0
        self._next_deadline = math.inf

    def __len__(self) -> int:
        return len(self._waiting) + len(self.encoding) + len(self.running)

    def add(self, jobs: Iterable[T]) -> None:
        """Put ``jobs`` at the end of the queue."""
        for job in jobs:
            self._waiting.append(job)
            self.waiting_tokens += job.cost
            self._next_deadline = min(self._next_deadline, job.deadline)

    def admit(self) -> list[T]:
        """Take from the queue what this turn encodes, in order of arrival.

        The first job always fits; further ones while rows are free and the batch, padded to its longest source, stays
        within ``encode_tokens``. The caller encodes them and calls `start`.
        """
        admitted = self.encoding = []
        free, longest = self.rows - sum(job.rows for job in self.running), 0
        while self._waiting:
            job = self._waiting[0]
            longest = max(longest, job.source_tokens)
            if job.rows > free or (admitted and longest * (len(admitted) + 1) > self.encode_tokens):
                break
            free -= job.rows
            admitted.append(self._waiting.popleft())
            self.waiting_tokens -= job.cost
        return admitted

    def start(self, jobs: Iterable[T]) -> None:
        """Let those of the encoded jobs that decode run; the others are done."""
        self.running.extend(jobs)
        self.encoding = []

    def retire(self, now: float, finished: Iterable[T] = ()) -> list[T]:
        """Take out of the running jobs those ``finished``; returns the others that nobody waits for, out as well."""
        done = set(finished)
        gone = [job for job in self.running if job not in done and job.gone(now)]
        done.update(gone)
        if done:
            self.running = [job for job in self.running if job not in done]
        return gone

    def drop(self, now: float, cancelled: bool = True) -> list[T]:
        """Take from the queue the jobs that are cancelled or whose deadline has passed.

        ``cancelled`` False promises that none has been cancelled since the last time; then nobody is looked at before
        the next deadline.
        """
        if not cancelled and now < self._next_deadline:
            return []
        gone = [job for job in self._waiting if job.gone(now)]
        if gone:
            self._waiting = deque(job for job in self._waiting if not job.gone(now))
            self.waiting_tokens -= sum(job.cost for job in gone)
        self._next_deadline = min((job.deadline for job in self._waiting), default=math.inf)
        return gone

    def clear(self) -> list[T]:
        """Take out everything."""
        everything = [*self._waiting, *self.encoding, *self.running]
        self._waiting.clear()
        self.encoding = []
        self.running.clear()
        self.waiting_tokens = 0
        return everything
