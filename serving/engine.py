"""The engine: one thread that owns the runtime and the cache, and works on everybody's requests at once.

Each turn it drops what is no longer wanted, encodes some of what waits, admits it to free rows, packs the rows, takes
one decoding step for each of them whatever its position, and delivers what is finished.

What goes wrong with one job, or with the sentences that are encoded together, fails those and nobody else. Any other
exception ends the thread: what is not done fails with NotReady, and so does whatever comes. Nothing is known then of
the state that all requests share, so the process is replaced rather than mended (`Engine.when_broken`).
"""

import logging
import math
import threading
import time
from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.tokenizer import START
from serving.chunks import chunks
from serving.errors import BUG, NotReady, QueueFull, ServiceError
from serving.found import Found
from serving.greedy import GreedyRows
from serving.job import Attended, Encoded, Job, Listener, Translated, tell
from serving.rows import Copy, Rows
from serving.runtime import EncodedBatch, Runtime, StepState
from serving.scheduler import Scheduler
from serving.search import Candidates, Single
from serving.throughput import Throughput

logger = logging.getLogger(__name__)

GATHER_STEPS = 4
"""Whoever comes while others decode waits until so many steps have been taken since the last encoding, or
`GATHER_SECONDS` are over: those who come in the meantime are encoded together, and the encoder's weights are read once
for all of them."""
GATHER_SECONDS = 0.02
SHARED_K = 32
"""The most tokens that a step finds for all its rows because one of them wants as many: the widest beam's. Who wants
more chooses from all tokens, at the price of a row or two for each of its own, not of one for everybody's."""


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
        self.when_broken: Callable[[], None] = lambda: None
        """Called by the engine's thread as the last it does, if an exception ends it."""
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
        """Queue all of ``jobs``, which are one request, or, with QueueFull, NotReady or ValueError, none.

        Each job's ``future`` receives result or error.
        """
        cost = sum(job.cost for job in jobs)
        for job in jobs:
            if job.rows > self._scheduler.rows:
                raise ValueError(f"a job wants {job.rows} rows; there are {self._scheduler.rows}")
            if misfit := job.misfit(self._runtime.manifest):
                raise ValueError(f"a job does not fit the model: {misfit}")
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
        with self._wake:  # or jobs that move from one queue to the other would be seen in both
            return self._arriving_tokens + self._scheduler.waiting_tokens

    @property
    def rows_in_use(self) -> int:
        """Of the `rows`: those being decoded."""
        return len(self._rows)

    @property
    def load(self) -> float:
        """Rows that are used or waited for, over all there are; what is only encoded counts for one."""
        with self._wake:
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
            self._arriving, self._arriving_tokens, self._arriving_load = [], 0, 0
        for job in left:
            job.fail(NotReady("the engine stopped before this was done"))
        if self._failure is not None:
            self.when_broken()

    def _take_arrivals(self) -> bool:
        """Wait until there is work; False when it is time to stop."""
        while not self._arriving and not len(self._scheduler) and (deep := self._cache.deep()):
            self._cache.give_back(deep)  # a little at a time: whoever comes meanwhile does not wait for all of it
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
            job.give_up()
            self._release(job)
        # Before others are placed there.
        if deep := self._cache.deep():
            self._cache.give_back([row for row in deep if not self._rows.used(row)])
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
                try:
                    arrays = self._runtime.attention(job.source, job.target)
                except Exception as error:
                    self._fail(job, error)
                else:
                    job.encoded = time.monotonic()
                    job.deliver(Attended(arrays, job.timings()))
        parts = list(chunks([job for job in jobs if not job.target], self._runtime.lanes))
        results = self._runtime.encode([[job.source for job in part] for part in parts])
        placed: list[Job] = []
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, Exception):
                for job in part:
                    self._fail(job, result)
                continue
            self.work.source_tokens += sum(job.source_tokens for job in part)
            self.work.padded_tokens += len(part) * result.positions
            placed += self._place(part, result)
        self._scheduler.start(placed)

    def _place(self, jobs: list[Job], result: EncodedBatch) -> list[Job]:
        """Deliver what was only to be encoded; give the others rows, and return them."""
        finished, state, placed = time.monotonic(), self._state, []
        for index, job in enumerate(jobs):
            job.encoded = finished
            try:
                if job.search:
                    row = self._rows.place(job)
                    self._cache.store(row, result.caches, index, job.source_tokens)
                    state.token[row], state.position[row], state.lengths[row] = START, 0, job.source_tokens
                    self._greedy.start(row, 0 if job.asked else job.search.decoding.max_tokens)
                    if job.asked:
                        self._searching.append(job)
                    placed.append(job)
                else:
                    memory = result.memory[index, : job.source_tokens]
                    vectors = self._runtime.pool(memory)[None] if job.pooled else memory.copy()
                    job.encoded = time.monotonic()
                    job.deliver(Encoded(vectors, job.timings()))
            except Exception as error:
                self._fail(job, error)
        return placed

    def _fail(self, job: Job, error: Exception) -> None:
        """End ``job``, whose own work ended in ``error``: whoever shares the engine with it goes on."""
        logger.error("a job failed", exc_info=error)
        self._release(job)
        if job in self._scheduler.running:
            self._scheduler.finish([job])
        job.fail(ServiceError(BUG))

    def _step(self) -> None:
        k, whole = self._ask()
        self._copy(self._rows.pack())
        rows, state = len(self._rows), self._state
        if not rows:
            return  # all that were asked have failed
        found = self._runtime.step(self._cache, state, rows, k, whole)
        self._cache.written(state.position[:rows] + 1)
        best = found.tokens[:, 0]
        ended = self._greedy.write(state.position[:rows], best, found.log_probabilities[:, 0])
        finished: list[Job] = []
        for row in ended:
            job = self._rows.owners[row]
            try:
                assert isinstance(job.search, Single)
                job.search.finish(*self._greedy.written(row, int(state.position[row]) + 1))
                finished.append(job)
            except Exception as error:
                self._fail(job, error)
        state.token[:rows] = best
        state.position[:rows] += 1
        self.work.steps += 1
        self.work.rows += rows
        if self._searching:
            finished += self._search(found)
        self._scheduler.finish(finished)
        for job in finished:
            self._release(job)
            try:
                assert job.search
                job.deliver(Translated(job.search.hypotheses, job.timings()))
            except Exception as error:
                self._fail(job, error)

    def _ask(self) -> tuple[int, bool]:
        """How many tokens the next step finds for every row, and whether somebody chooses from all of them."""
        shared, most, state = 2, 0, self._state  # TopK takes twice as long to find one token as to find two
        for job in list(self._searching):
            assert job.search
            try:
                wanted, token = job.search.wanted, job.search.given
                if token is not None:
                    state.given[job.places[0]] = token
            except Exception as error:
                self._fail(job, error)
                continue
            most = max(most, wanted)
            if wanted <= SHARED_K:
                shared = max(shared, wanted)
        if most > SHARED_K and not self._runtime.gives_log_softmax:
            shared = most
        return min(shared, self._runtime.manifest.model.vocabulary), most > shared

    def _search(self, found: Found) -> list[Job]:
        """Let those searches that are asked choose from what a step found; returns the jobs that are done."""
        copies: list[Copy] = []
        finished: list[Job] = []
        heard: dict[AbstractEventLoop, list[tuple[Listener, int]]] = defaultdict(list)
        chosen: list[tuple[Job, list[int]]] = []
        for job in list(self._searching):
            assert job.search
            try:
                wanted = job.search.wanted
                best = [Candidates(*found.best(row, wanted), float(found.given[row])) for row in job.places]
                following = job.search.advance(best)
                if job.listener:
                    heard[job.listener.loop].append((job.listener, job.search.last))
            except Exception as error:
                self._fail(job, error)
                continue
            if following:
                copies += self._rows.follow(job, [parent for parent, _ in following])
                chosen.append((job, [token for _, token in following]))
            else:
                finished.append(job)
        self._copy(copies)
        for job, each in chosen:
            for row, token in zip(job.places, each, strict=True):
                self._state.token[row] = token
        tell(heard)
        return finished

    def _release(self, job: Job) -> None:
        """Free the rows of ``job``, if it has any; they are filled again before the next step."""
        if job.places:
            self._rows.release(job)
            if job in self._searching:
                self._searching.remove(job)

    def _copy(self, copies: list[Copy]) -> None:
        """Copy rows over others: caches and all."""
        if not copies:
            return
        state = self._state
        for origin, row, fresh in copies:
            # Rows of one beam share the source's part: within it, only the target's needs copying.
            self._cache.copy(origin, row, int(state.position[origin]), int(state.lengths[origin]) if fresh else 0)
        origins, rows = [copy.origin for copy in copies], [copy.row for copy in copies]
        state.copy(origins, rows)
        self._greedy.copy(origins, rows)
