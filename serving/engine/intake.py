"""Where jobs come in: the one part of the engine that several threads touch."""

import math
import threading
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

from serving.engine.scheduler import Scheduler, Ticket
from serving.errors import NotReady, QueueFull

T = TypeVar("T", bound=Ticket)


class Intake(Generic[T]):
    """Keeps jobs from the moment they are submitted until the engine's thread hands them to the scheduler."""

    def __init__(self, scheduler: Scheduler[T], queue_tokens: int) -> None:
        """A request is refused that would bring the waiting tokens above ``queue_tokens``; see `check_room`."""
        self.queue_tokens = queue_tokens
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._arriving: list[Sequence[T]] = []
        """One list for each request."""
        self._tokens = self._load = 0
        """Costs and rows of the jobs that are arriving."""
        self.handed_over = time.monotonic()
        """When the scheduler was last given what had come."""
        self._someone_left = False
        self._closed: str | None = None
        """Why nothing is taken any more."""

    def put(self, jobs: Sequence[T]) -> None:
        """Queue all of ``jobs``, which are one request, or, with QueueFull or NotReady, none."""
        cost = sum(job.cost for job in jobs)
        with self._changed:
            if self._closed:
                raise NotReady(self._closed)
            self.check_room(cost)
            self._arriving.append(list(jobs))
            self._tokens += cost
            self._load += sum(job.load for job in jobs)
            self._changed.notify()

    def check_room(self, cost: int) -> None:
        """QueueFull when a request of ``cost`` tokens, counted as half the queue at most, does not fit."""
        waiting = self.waiting_tokens
        # A large request counts as half the queue at most: one that never fitted would wait for ever.
        excess = waiting + min(cost, self.queue_tokens // 2) - self.queue_tokens
        if excess > 0:
            seconds = math.ceil(min(waiting, excess) / self._scheduler.throughput.rate)
            raise QueueFull(waiting, self.queue_tokens, max(1, seconds))

    def cancel(self, jobs: Sequence[T]) -> None:
        """Let the scheduler drop ``jobs`` at its next turn."""
        for job in jobs:
            job.cancelled = True
        self._someone_left = True

    @property
    def waiting_tokens(self) -> int:
        """Of all jobs that have not been encoded yet."""
        with self._changed:  # or jobs that move from one queue to the other would be seen in both
            return self._tokens + self._scheduler.waiting_tokens

    @property
    def load(self) -> int:
        """Of all jobs that wait or are worked on."""
        with self._changed:
            return self._scheduler.load + self._load

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do for the engine's thread, or it is to end."""
        return bool(self._arriving or len(self._scheduler) or self._closed)

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed is not None

    def hand_over(self) -> bool:
        """Wait until there is work and give the scheduler what has come; whether anybody may have been cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_work)
            # Asked before these are taken: who left while they arrived is found among them now, or said again. And
            # written only where it was True: one who leaves between the reading and the writing would be overlooked.
            self.handed_over = time.monotonic()
            if left := self._someone_left:
                self._someone_left = False
            for jobs in self._take():
                self._scheduler.add(jobs)
            return left

    def close(self, why: str) -> None:
        """Take nothing any more, because of ``why``; the first reason stays."""
        with self._changed:
            self._closed = self._closed or why
            self._changed.notify()

    def clear(self) -> list[T]:
        """Take out everything, also from the scheduler."""
        with self._changed:
            return [*self._scheduler.clear(), *(job for jobs in self._take() for job in jobs)]

    def _take(self) -> list[Sequence[T]]:
        arrived, self._arriving, self._tokens, self._load = self._arriving, [], 0, 0
        return arrived
