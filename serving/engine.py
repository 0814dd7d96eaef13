"""The engine: one thread that owns the runtime and the cache, and works on everybody's requests at once.

Each turn it drops what is no longer wanted, encodes some of what waits, admits it to free rows, takes one decoding
step for every row whatever its position, delivers what is finished and packs the rows that are left.

An exception in that thread ends it: what is not done fails with NotReady, and so does whatever comes. Nothing is known
then of the state that all requests share, so the process is replaced (`Engine.check_health`) rather than mended.
"""

import contextlib
import logging
import math
import threading
import time
from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from model.tokenizer import START
from serving.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError
from serving.job import Attended, Encoded, Job, Listener, Translated
from serving.rows import Copy, Rows
from serving.runtime import ALIGNMENT, EncodedBatch, Runtime, StepState
from serving.scheduler import Scheduler
from serving.search import Candidates
from serving.throughput import Throughput

logger = logging.getLogger(__name__)

ENCODE_CHUNK = 256
"""Padded source tokens that go through the encoder together. More make no product faster, but push the states that
pass between its layers out of the processor's nearer caches."""
RUN_TOKENS = 8
"""Source tokens that take the encoder about as long as one more run: no more padding than that saves one."""


@dataclass
class Work:
    """What an engine has done since it started; its thread alone writes it."""

    source_tokens: int = 0
    """Encoded."""
    padded_tokens: int = 0
    """Positions the encoder worked on for them, padding included."""
    steps: int = 0
    """Of decoding."""
    rows: int = 0
    """Decoded in all steps: divided by them, the rows of a step on average."""


class Engine:
    """Runs jobs on a `Runtime` in a thread of its own; every method may be called from any thread."""

    def __init__(self, runtime: Runtime, rows: int, encode_tokens: int, queue_tokens: int, share: int) -> None:
        self.queue_tokens, self.rows = queue_tokens, rows
        self.work = Work()
        self._runtime = runtime
        runtime.tune(rows)
        self._cache = runtime.cache(rows)
        self._scheduler: Scheduler[Job] = Scheduler(rows, encode_tokens, share)
        self._wake = threading.Condition()
        self._arriving: list[Sequence[Job]] = []
        self._arriving_tokens = self._arriving_load = 0
        self._stopping = False
        self._failure: BaseException | None = None
        self._last_turn = time.monotonic()
        self._throughput = Throughput()
        self._someone_left = False
        self._rows: Rows[Job] = Rows()
        self._state = StepState(rows)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of ``jobs``, which are one request, or, with QueueFull or NotReady, none.

        Each job's ``future`` receives result or error.
        """
        cost = sum(job.cost for job in jobs)
        if widest := max((job.rows for job in jobs if job.rows > self._scheduler.rows), default=0):
            raise ValueError(f"a job wants {widest} rows; there are {self._scheduler.rows}")
        with self._wake:
            if self._failure is not None or self._stopping:
                raise NotReady("the engine has stopped" if self._failure is None else f"the engine: {self._failure}")
            self.check_room(cost)
            self._arriving.append(list(jobs))
            self._arriving_tokens += cost
            self._arriving_load += sum(job.load for job in jobs)
            self._wake.notify()

    def check_room(self, cost: int) -> None:
        """QueueFull when a request of ``cost`` tokens or more would not fit the queue."""
        waiting = self.waiting_tokens
        # A large request counts as half the queue at most: one that never fitted would wait for ever.
        excess = waiting + min(cost, self.queue_tokens // 2) - self.queue_tokens
        if excess > 0:
            seconds = math.ceil(min(waiting, excess) / self._throughput.rate)
            raise QueueFull(waiting, self.queue_tokens, max(1, seconds))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop work on ``jobs`` within one step; nothing happens to those already done."""
        for job in jobs:
            job.cancelled = True
        self._someone_left = True

    def stop(self) -> None:
        """Refuse new jobs, fail those not done with NotReady, end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting_tokens(self) -> int:
        """Tokens of jobs that have not been encoded yet."""
        return self._arriving_tokens + self._scheduler.waiting_tokens

    @property
    def rows_in_use(self) -> int:
        """Of the `rows`: those being decoded."""
        return len(self._rows)

    @property
    def load(self) -> float:
        """Rows that are used or waited for, over all there are; what is only encoded counts for one."""
        return (self._scheduler.load + self._arriving_load) / self.rows

    def check_health(self, patience: float = 60.0) -> None:
        """RuntimeError when the thread is dead, or has work and took no turn for ``patience`` seconds."""
        if self._failure is not None or not self._thread.is_alive():
            raise RuntimeError(f"the engine's thread has ended: {self._failure}")
        idle = time.monotonic() - self._last_turn
        if len(self._scheduler) and idle > patience:
            raise RuntimeError(f"the engine has work and took no turn for {idle:.0f} s")

    def _run(self) -> None:
        try:
            while self._take_arrivals():
                self._turn()
        except BaseException as failure:
            logger.exception("the engine's thread has ended")
            self._failure = failure
        with self._wake:
            self._stopping = True
            left = [*self._scheduler.clear(), *(job for jobs in self._arriving for job in jobs)]
        for job in left:
            _fail(job, NotReady("the engine stopped before this was done"))

    def _take_arrivals(self) -> bool:
        """Wait until there is work; False when it is time to stop."""
        with self._wake:
            while not self._stopping and not self._arriving and not len(self._scheduler):
                self._wake.wait()
            for jobs in self._arriving:
                self._scheduler.add(jobs)
            self._arriving, self._arriving_tokens, self._arriving_load = [], 0, 0
            self._last_turn = time.monotonic()
            return not self._stopping

    def _turn(self) -> None:
        now = time.monotonic()
        # Written only where it was True: one who leaves between the reading and the writing would be overlooked.
        if left := self._someone_left:
            self._someone_left = False
        gone = self._scheduler.retire(now)
        for job in [*self._scheduler.drop(now, left), *gone]:
            _give_up(job)
        self._release(gone)
        admitted = self._scheduler.admit(now)
        if admitted:
            self._encode(admitted)
        if self._scheduler.running:
            self._step()
        if self._scheduler.waiting_tokens:
            self._throughput.add(sum(job.cost for job in admitted), time.monotonic() - now)

    def _encode(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.admitted = time.monotonic()
            if job.target:
                arrays = self._runtime.attention(job.source, job.target)
                job.encoded = time.monotonic()
                _deliver(job, Attended(arrays, job.timings()))
        chunks = list(_chunks([job for job in jobs if not job.target], self._runtime.lanes))
        results = self._runtime.encode([[job.source for job in chunk] for chunk in chunks])
        for chunk, result in zip(chunks, results, strict=True):
            self.work.source_tokens += sum(job.source_tokens for job in chunk)
            self.work.padded_tokens += len(chunk) * max(map(_padded, chunk))
            self._place(chunk, result)
        self._scheduler.start(job for job in jobs if job.rows)

    def _place(self, jobs: list[Job], result: EncodedBatch) -> None:
        used, finished = len(self._rows), time.monotonic()
        starting = [job for job in jobs if job.rows]
        if starting:
            longest = max(job.source_tokens for job in [*starting, *self._rows.owners])
            self._cache.deepen(used, self._written(), longest)
            self._cache.grow(used + len(starting))
        for index, job in enumerate(jobs):
            job.encoded = finished
            if job.rows:
                row = self._rows.place(job)
                self._cache.store(row, result.caches, index, job.source_tokens)
                self._state.token[row], self._state.position[row] = START, 0
                self._state.lengths[row] = job.source_tokens
            else:
                memory = result.memory[index, : job.source_tokens].copy()
                _deliver(job, Encoded(memory, job.timings()))

    def _written(self) -> int:
        """Positions that the next step's deepest row needs."""
        return int(self._state.position[: len(self._rows)].max(initial=0)) + 1

    def _step(self) -> None:
        running, rows, state = self._scheduler.running, len(self._rows), self._state
        longest = max(job.source_tokens for job in running)
        self._cache.deepen(rows, self._written(), longest)
        # ONNX Runtime's TopK takes twice as long to find one token as to find two.
        wanted = 2
        for job in running:
            assert job.search
            wanted = max(wanted, job.search.wanted)
            if (given := job.search.given) is not None:
                state.given[job.places[0]] = given
        k = min(wanted, self._runtime.manifest.model.vocabulary)
        found = [array.tolist() for array in self._runtime.step(self._cache, state, rows, k)]
        state.position[:rows] += 1
        self.work.steps += 1
        self.work.rows += rows
        copies: list[Copy] = []
        finished: list[Job] = []
        heard: dict[AbstractEventLoop, list[tuple[Listener, int]]] = defaultdict(list)
        tokens: list[tuple[Job, list[int]]] = []
        for job in running:
            assert job.search
            following = job.search.advance([Candidates(*(part[row] for part in found)) for row in job.places])
            if following:
                copies += self._rows.follow(job, [parent for parent, _ in following])
                tokens.append((job, [token for _, token in following]))
            else:
                finished.append(job)
            if job.listener:
                heard[job.listener.loop].append((job.listener, job.search.last))
        self._copy(copies)
        for job, each in tokens:
            for row, token in zip(job.places, each, strict=True):
                state.token[row] = token
        gone = self._scheduler.retire(time.monotonic(), finished)
        # What is done is told before anything else can go wrong.
        _tell(heard)
        for job in finished:
            assert job.search
            _deliver(job, Translated(job.search.hypotheses, job.timings()))
        for job in gone:
            _give_up(job)
        self._release([*finished, *gone])

    def _release(self, jobs: Iterable[Job]) -> None:
        """Free the rows of ``jobs`` and pack those that are left."""
        for job in jobs:
            self._rows.release(job)
        self._copy(self._rows.pack())

    def _copy(self, copies: list[Copy]) -> None:
        """Copy rows over others: caches and all."""
        if not copies:
            return
        self._cache.grow(max(copy.row for copy in copies) + 1)
        state = self._state
        for origin, row, fresh in copies:
            # Rows of one beam share the source's part: within it, only the target's needs copying.
            self._cache.copy(origin, row, int(state.position[origin]), int(state.lengths[origin]) if fresh else 0)
        state.copy([copy.origin for copy in copies], [copy.row for copy in copies])


def _chunks(jobs: list[Job], lanes: int) -> Iterator[list[Job]]:
    """``jobs`` by length, so that little is padded, in parts of `ENCODE_CHUNK` padded tokens at most or one job.

    Few jobs are parted so that each of ``lanes`` has some.
    """
    longest = max((_padded(job) for job in jobs), default=0)
    limit = min(ENCODE_CHUNK, longest * len(jobs) // lanes + longest - 1)
    chunk: list[Job] = []
    for job in sorted(jobs, key=_padded):
        padding = len(chunk) * (_padded(job) - _padded(chunk[-1])) if chunk else 0
        if chunk and (padding > RUN_TOKENS or _padded(job) * (len(chunk) + 1) > limit):
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


def _padded(job: Job) -> int:
    return -(-job.source_tokens // ALIGNMENT) * ALIGNMENT


def _tell(heard: dict[AbstractEventLoop, list[tuple[Listener, int]]]) -> None:
    """Give every listener its token, waking each event loop once."""

    def tell(news: list[tuple[Listener, int]]) -> None:
        for listener, token in news:
            try:
                listener.hear(token)
            except Exception:  # the others' tokens must not be lost with it
                logger.exception("a listener failed")

    for loop, news in heard.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(tell, news)


def _deliver(job: Job, result: Translated | Encoded | Attended) -> None:
    # A client may cancel the future from its own thread at any moment; from here on it no longer can.
    if job.future.set_running_or_notify_cancel():
        job.future.set_result(result)


def _fail(job: Job, error: ServiceError) -> None:
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)


def _give_up(job: Job) -> None:
    if job.cancelled and job.future.cancel():
        job.future.set_running_or_notify_cancel()
    else:
        _fail(job, DeadlineExceeded(job.deadline - job.arrived))
