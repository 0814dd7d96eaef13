"""Whom to encode, whom to let wait, whom to drop, and what it all costs: plain Python over plain data."""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.engine.decoding import Decoding
from serving.engine.throughput import Throughput

GATHER_STEPS = 4
"""Whoever comes while others decode waits until so many steps have been taken since the last encoding, or
`GATHER_SECONDS` are over: those who come in the meantime are encoded together, and the encoder's weights are read once
for all of them."""
GATHER_SECONDS = 0.02
CROWDED_SECONDS = 2.0
"""How long after others were there a request still keeps to its share: more of them are likely to come."""


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
    line: "Line[Any] | None" = None
    """The scheduler's own: where it stands in the queue."""

    @property
    def load(self) -> int:
        """Rows it counts for in the load of an engine: one where it takes none, for the encoder works on it too."""
        return max(1, self.rows)

    def gone(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or self.deadline <= now


def translation_cost(source_tokens: int, decoding: Decoding) -> int:
    """The tokens that a translation reads and is expected to write: about twice its source, in every hypothesis."""
    given = len(decoding.prefix)
    expected = given + min(max(0, decoding.max_tokens - given), 2 * source_tokens)
    return source_tokens + decoding.beam_size * max(decoding.min_tokens, expected)


T = TypeVar("T", bound=Ticket)


@dataclass(eq=False)
class Line(Generic[T]):
    """The jobs of one request that wait, and what the others of it hold."""

    number: int
    start: float
    """On the scheduler's virtual clock: when its next job would begin if all requests were served at once."""
    waiting: deque[T]
    jobs: int
    """Of it that wait or are worked on."""
    rows: int = 0
    """Held by its jobs that are being encoded or decoded."""

    def __lt__(self, other: "Line[T]") -> bool:
        return (self.start, self.number) < (other.start, other.number)


class Scheduler(Generic[T]):
    """Shares out the free rows, and the source tokens that one turn may encode, fairly among requests.

    Fair queueing (Demers, Keshav and Shenker 1989): a virtual clock advances by the cost of what is admitted over the
    number of requests that wait. A request's first job is due when it arrives, each further one its predecessor's cost
    later; whoever was due first comes first. Single jobs are thereby served in order of arrival, and a list of a
    thousand takes turns with those that come after it.

    Besides, while there are other requests none holds more than ``share`` rows, unless a single job of it needs more:
    every row makes the steps of all others slower.
    """

    def __init__(self, rows: int, encode_tokens: int, share: int) -> None:
        self.rows, self.encode_tokens, self.share = rows, encode_tokens, share
        self.running: list[T] = []
        """Jobs being decoded."""
        self.encoding: list[T] = []
        """Jobs admitted in this turn: no longer waiting, not yet decoded."""
        self.waiting_tokens = 0
        self.load = 0
        """Of all jobs that wait or are worked on."""
        self.throughput = Throughput()
        self._steps, self._encoded_at = 0, -math.inf
        """Steps since the last encoding, and when it was."""
        self._admitted_cost, self._crowded = 0, False
        """Of the jobs admitted in this turn; and whether there was no room for all when some were last admitted."""
        self._queue: list[Line[T]] = []
        """A heap of the lines in which somebody waits."""
        self._lines: set[Line[T]] = set()
        """Those of which a job waits or is worked on."""
        self._arrived = 0
        self._jobs = 0
        self._clock = 0.0
        self._crowded_until = -math.inf
        self._next_deadline = math.inf

    def __len__(self) -> int:
        """Jobs that wait or are worked on; may be asked from any thread."""
        return self._jobs

    def add(self, jobs: Sequence[T]) -> None:
        """Queue the ``jobs`` of one request, to be worked on in their order."""
        if not jobs:
            return
        line = Line(self._arrived, self._clock, deque(jobs), len(jobs))
        self._arrived += 1
        self._lines.add(line)
        self._jobs += len(jobs)
        heapq.heappush(self._queue, line)
        for job in jobs:
            job.line = line
            self.waiting_tokens += job.cost
            self.load += job.load
            self._next_deadline = min(self._next_deadline, job.deadline)

    def take_turn(self, now: float) -> list[T]:
        """The jobs to encode in a turn that begins ``now``: none while more are gathered, else those of `admit`."""
        self._admitted_cost = 0
        if self.running and self._steps < GATHER_STEPS and now - self._encoded_at < GATHER_SECONDS:
            return []
        admitted = self.admit(now)
        self._admitted_cost = sum(job.cost for job in admitted)
        self._crowded = self.waiting_tokens > 0
        return admitted

    def end_turn(self, seconds: float) -> None:
        """Count a turn, which took ``seconds``."""
        self._steps += 1
        if self._crowded:
            self.throughput.add(self._admitted_cost, seconds)

    def admit(self, now: float) -> list[T]:
        """Take from the queue what this turn encodes, in the order in which it is due.

        A job needs as many free rows as it may take. The first may be longer than ``encode_tokens``; with further ones
        all sources stay within it. A request that holds its ``share`` is passed over while there are others. The caller
        encodes the jobs and calls `start`.
        """
        if len(self._lines) > 1:
            self._crowded_until = now + CROWDED_SECONDS
        admitted = self.encoding = []
        if not self._queue:
            return admitted
        free, tokens = self.rows - sum(job.rows for job in self.running), 0
        satisfied: list[Line[T]] = []
        while self._queue:
            line = self._queue[0]
            job = line.waiting[0]
            if job.rows and line.rows and line.rows + job.rows > self.share and now < self._crowded_until:
                satisfied.append(heapq.heappop(self._queue))
                continue
            tokens += job.source_tokens
            # Who has no room yet is not passed by others: a wide beam could wait for ever.
            if job.rows > free or (admitted and tokens > self.encode_tokens):
                break
            self._clock = max(self._clock + job.cost / (len(self._queue) + len(satisfied)), line.start)
            line.waiting.popleft()
            line.start += job.cost
            line.rows += job.rows
            if line.waiting:
                heapq.heapreplace(self._queue, line)
            else:
                heapq.heappop(self._queue)
            free -= job.rows
            admitted.append(job)
            self.waiting_tokens -= job.cost
        for line in satisfied:
            # What it may not use now it does not get later instead.
            line.start = max(line.start, self._clock)
            heapq.heappush(self._queue, line)
        return admitted

    def start(self, jobs: Iterable[T], now: float) -> None:
        """Let those ``jobs`` run that were encoded until ``now`` and are to be decoded; the others are done."""
        self._steps, self._encoded_at = 0, now
        started = list(jobs)
        self.running.extend(started)
        self._leave(set(self.encoding).difference(started))
        self.encoding = []

    def finish(self, jobs: Sequence[T]) -> None:
        """Take running ``jobs`` out: they are done."""
        if jobs:
            done = set(jobs)
            self.running = [job for job in self.running if job not in done]
            self._leave(done)

    def drop(self, now: float, cancelled: bool = True) -> list[T]:
        """Take out the jobs that are cancelled or whose deadline has passed, waiting or running.

        ``cancelled`` False promises that none has been cancelled since the last time; then nobody is looked at before
        the next deadline.
        """
        if not cancelled and now < self._next_deadline:
            return []
        everybody = [*(job for line in self._queue for job in line.waiting), *self.running]
        # Asked once: others cancel at any moment.
        gone = {job: None for job in everybody if job.gone(now)}
        if gone:
            left = [job for line in self._queue for job in line.waiting if job in gone]
            self.waiting_tokens -= sum(job.cost for job in left)
            self._leave(left, held=False)
            for line in self._queue:
                line.waiting = deque(job for job in line.waiting if job not in gone)
            self._queue = [line for line in self._queue if line.waiting]
            heapq.heapify(self._queue)
            self.finish([job for job in self.running if job in gone])
        self._next_deadline = min((job.deadline for job in everybody if job not in gone), default=math.inf)
        return list(gone)

    def clear(self) -> list[T]:
        """Take out everything."""
        waiting = [job for line in self._queue for job in line.waiting]
        everything = [*waiting, *self.encoding, *self.running]
        self._queue.clear()
        self._lines.clear()
        self._jobs = 0
        self.encoding = []
        self.running.clear()
        self.waiting_tokens = self.load = 0
        return everything

    def _leave(self, jobs: Iterable[T], held: bool = True) -> None:
        """``jobs`` are done with; they ``held`` rows if they were not still waiting."""
        for job in jobs:
            line = job.line
            assert line
            line.jobs -= 1
            self._jobs -= 1
            self.load -= job.load
            line.rows -= job.rows if held else 0
            if not line.jobs:
                self._lines.discard(line)
