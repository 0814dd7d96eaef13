"""The engine: one thread that owns the runtime and the cache, and works on everybody's requests at once.

Each turn it drops what is no longer wanted, encodes some of what waits, admits it to free rows, packs the rows, takes
one decoding step for each of them whatever its position, and delivers what is finished.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.tokenizer import START
from serving.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError
from serving.greedy import GreedyRows
from serving.job import Attended, Encoded, Job, Listener, Translated
from serving.rows import Copy, Rows
from serving.runtime import EncodedBatch, Runtime, StepState
from serving.scheduler import Scheduler
from serving.search import Candidates, Single
from serving.throughput import Throughput

logger = logging.getLogger(__name__)

ENCODE_CHUNK = 256
"""Source tokens that go through the encoder together. More make no product faster, but push the states that pass
between its layers out of the processor's nearer caches."""
RUN_TOKENS = 8
"""Source tokens that take the encoder about as long as one more run: no more padding than that saves one."""
ATTENTION_POSITIONS = 300
"""Pairs of a query and a key that take the encoder about as long as a token; only attention is padded."""
GATHER_STEPS = 4
"""Whoever comes while others decode waits until so many steps have been taken since the last encoding, or
`GATHER_SECONDS` are over: those who come in the meantime are encoded together, and the encoder's weights are read once
for all of them."""
GATHER_SECONDS = 0.02


@dataclass
class Work:
    """What an engine has done since it started; its thread alone writes it."""

    source_tokens: int = 0
    """Encoded."""
    padded_tokens: int = 0
    """Positions the encoder's attention worked on for them, padding included."""
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
        self._someone_left = self._look_through = False
        self._gathered, self._last_encoding = 0, -math.inf
        """Steps since the last encoding, and when it was."""
        self._crowded = False
        """Whether there was no room for all who waited when some were last admitted."""
        self._rows: Rows[Job] = Rows()
        self._state = StepState(rows)
        self._greedy = GreedyRows(rows, runtime.manifest.model.max_positions)
        self._searching: list[Job] = []
        """Of the running jobs those whose search is asked at every step."""
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
            # Asked before these are taken: who left while they arrived is found among them now, or said again. And
            # written only where it was True: one who leaves between the reading and the writing would be overlooked.
            if left := self._someone_left:
                self._someone_left = False
            self._look_through = left
            for jobs in self._arriving:
                self._scheduler.add(jobs)
            self._arriving, self._arriving_tokens, self._arriving_load = [], 0, 0
            self._last_turn = time.monotonic()
            return not self._stopping

    def _turn(self) -> None:
        now = time.monotonic()
        for job in self._scheduler.drop(now, self._look_through):
            _give_up(job)
            self._release(job)
        admitted: list[Job] = []
        gathered = self._gathered >= GATHER_STEPS or now - self._last_encoding >= GATHER_SECONDS
        if gathered or not self._scheduler.running:
            admitted = self._scheduler.admit(now)
            self._crowded = self._scheduler.waiting_tokens > 0
        if admitted:
            self._encode(admitted)
            self._gathered, self._last_encoding = 0, time.monotonic()
        if self._scheduler.running:
            self._step()
            self._gathered += 1
        if not self._scheduler.running:
            self._rows.pack()  # nobody is moved; those who are done are forgotten
        if self._crowded:
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
            self.work.padded_tokens += len(chunk) * result.positions
            self._place(chunk, result)
        self._scheduler.start(job for job in jobs if job.rows)

    def _place(self, jobs: list[Job], result: EncodedBatch) -> None:
        used, finished, state = self._rows.extent, time.monotonic(), self._state
        if lengths := [job.source_tokens for job in jobs if job.search]:
            written, read = self._reach(used)
            self._cache.deepen(used, written, max(read, *lengths))
            self._cache.grow(max(used, len(self._rows) + len(lengths)))
        for index, job in enumerate(jobs):
            job.encoded = finished
            if job.search:
                row = self._rows.place(job)
                self._cache.store(row, result.caches, index, job.source_tokens)
                state.token[row], state.position[row], state.lengths[row] = START, 0, job.source_tokens
                self._greedy.start(row, 0 if job.asked else job.search.decoding.max_tokens)
                if job.asked:
                    self._searching.append(job)
            else:
                memory = result.memory[index, : job.source_tokens]
                vectors = self._runtime.pool(memory)[None] if job.pooled else memory.copy()
                job.encoded = time.monotonic()
                _deliver(job, Encoded(vectors, job.timings()))

    def _reach(self, rows: int) -> tuple[int, int]:
        """Target and source positions that the next step's deepest row needs, of the first ``rows``."""
        state = self._state
        return int(state.position[:rows].max(initial=0)) + 1, int(state.lengths[:rows].max(initial=0))

    def _step(self) -> None:
        self._copy(self._rows.pack())
        rows, state = len(self._rows), self._state
        self._cache.deepen(rows, *self._reach(rows))
        # ONNX Runtime's TopK takes twice as long to find one token as to find two.
        wanted = 2
        for job in self._searching:
            assert job.search
            wanted = max(wanted, job.search.wanted)
            if (token := job.search.given) is not None:
                state.given[job.places[0]] = token
        k = min(wanted, self._runtime.manifest.model.vocabulary)
        tokens, log_probabilities, given = self._runtime.step(self._cache, state, rows, k)
        best = tokens[:, 0]
        ended = self._greedy.write(state.position[:rows], best, log_probabilities[:, 0])
        finished = [self._rows.owners[row] for row in ended]
        for row, job in zip(ended, finished, strict=True):
            assert isinstance(job.search, Single)
            job.search.finish(*self._greedy.written(row, int(state.position[row]) + 1))
        state.token[:rows] = best
        state.position[:rows] += 1
        self.work.steps += 1
        self.work.rows += rows
        if self._searching:
            finished += self._search([tokens.tolist(), log_probabilities.tolist(), given.tolist()])
        self._scheduler.finish(finished)
        for job in finished:
            assert job.search
            _deliver(job, Translated(job.search.hypotheses, job.timings()))
            self._release(job)

    def _search(self, found: list[list[Any]]) -> list[Job]:
        """Let those searches that are asked choose from what a step found; returns the jobs that are done."""
        copies: list[Copy] = []
        finished: list[Job] = []
        heard: dict[AbstractEventLoop, list[tuple[Listener, int]]] = defaultdict(list)
        chosen: list[tuple[Job, list[int]]] = []
        for job in self._searching:
            assert job.search
            following = job.search.advance([Candidates(*(part[row] for part in found)) for row in job.places])
            if following:
                copies += self._rows.follow(job, [parent for parent, _ in following])
                chosen.append((job, [token for _, token in following]))
            else:
                finished.append(job)
            if job.listener:
                heard[job.listener.loop].append((job.listener, job.search.last))
        self._copy(copies)
        for job, each in chosen:
            for row, token in zip(job.places, each, strict=True):
                self._state.token[row] = token
        # What is done is told before anything else can go wrong.
        _tell(heard)
        return finished

    def _release(self, job: Job) -> None:
        """Free the rows of ``job``, if it has any; they are filled again before the next step."""
        if job.places:
            # What nobody owns needs no room.
            self._state.position[job.places] = self._state.lengths[job.places] = 0
            self._rows.release(job)
            if job.asked:
                self._searching.remove(job)

    def _copy(self, copies: list[Copy]) -> None:
        """Copy rows over others: caches and all."""
        if not copies:
            return
        self._cache.grow(max(copy.row for copy in copies) + 1)
        state = self._state
        for origin, row, fresh in copies:
            # Rows of one beam share the source's part: within it, only the target's needs copying.
            self._cache.copy(origin, row, int(state.position[origin]), int(state.lengths[origin]) if fresh else 0)
        origins, rows = [copy.origin for copy in copies], [copy.row for copy in copies]
        state.copy(origins, rows)
        self._greedy.copy(origins, rows)


def _chunks(jobs: list[Job], lanes: int) -> Iterator[list[Job]]:
    """``jobs`` by length, so that attention pads little, in parts of `ENCODE_CHUNK` tokens at most or one job.

    Few jobs are parted so that each of ``lanes`` has some.
    """
    longest = max((job.source_tokens for job in jobs), default=0)
    limit = min(ENCODE_CHUNK, sum(job.source_tokens for job in jobs) // lanes + longest - 1)
    chunk: list[Job] = []
    tokens = pairs = 0
    for job in sorted(jobs, key=lambda job: job.source_tokens):
        length = job.source_tokens
        padding = (len(chunk) * length**2 - pairs) / ATTENTION_POSITIONS
        if chunk and (padding > RUN_TOKENS or tokens + length > limit):
            yield chunk
            chunk, tokens, pairs = [], 0, 0
        chunk.append(job)
        tokens += length
        pairs += length**2
    if chunk:
        yield chunk


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
