"""The engine: one thread that owns the sessions and the cache, and works on everybody's requests at once.

Each turn it drops what is no longer wanted, encodes some of what waits, admits it to free rows, takes one decoding
step for every row whatever its position, delivers what is finished and packs the rows that are left.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from model.tokenizer import END, START
from serving.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError
from serving.job import Attended, Encoded, Job, Translated
from serving.runtime import Runtime
from serving.scheduler import Scheduler


class Engine:
    """Runs jobs on a `Runtime` in a thread of its own; every method may be called from any thread."""

    def __init__(self, runtime: Runtime, rows: int, encode_tokens: int, queue_tokens: int) -> None:
        self.queue_tokens = queue_tokens
        self._runtime = runtime
        self._cache = runtime.cache(rows)
        self._scheduler: Scheduler[Job] = Scheduler(rows, encode_tokens)
        self._wake = threading.Condition()
        self._arriving: list[Job] = []
        self._arriving_tokens = 0
        self._stopping = False
        self._failure: BaseException | None = None
        self._last_turn = time.monotonic()
        self._tokens_per_second = 1000.0
        # What each row wrote last, where that stands, and how long its source is.
        self._tokens = np.zeros(rows, np.int64)
        self._positions = np.zeros(rows, np.int32)
        self._lengths = np.zeros(rows, np.int32)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of ``jobs`` or, with QueueFull or NotReady, none; each ``future`` receives result or error."""
        cost = sum(job.cost for job in jobs)
        with self._wake:
            if self._failure is not None or self._stopping:
                raise NotReady("the engine has stopped" if self._failure is None else f"the engine: {self._failure}")
            waiting = self.waiting_tokens
            # A request that is larger than the whole queue is let in when nothing else waits: else it never would be.
            if waiting and waiting + cost > self.queue_tokens:
                excess = waiting + cost - self.queue_tokens
                seconds = max(1, round(min(waiting, excess) / self._tokens_per_second + 0.5))
                raise QueueFull(waiting, self.queue_tokens, seconds)
            self._arriving += jobs
            self._arriving_tokens += cost
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop work on ``jobs`` within one step; nothing happens to those already done."""
        for job in jobs:
            job.cancelled = True

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
            self._failure = failure
        with self._wake:
            self._stopping = True
            left = [*self._scheduler.clear(), *self._arriving]
        for job in left:
            _fail(job, NotReady("the engine stopped before this was done"))

    def _take_arrivals(self) -> bool:
        """Wait until there is work; False when it is time to stop."""
        with self._wake:
            while not self._stopping and not self._arriving and not len(self._scheduler):
                self._wake.wait()
            self._scheduler.add(self._arriving)
            self._arriving, self._arriving_tokens = [], 0
            self._last_turn = time.monotonic()
            return not self._stopping

    def _turn(self) -> None:
        now = time.monotonic()
        for job in self._scheduler.drop(now):
            _give_up(job)
        self._free(self._scheduler.gone(now), _give_up)
        admitted = self._scheduler.admit()
        if admitted:
            self._encode(admitted)
        if self._scheduler.running:
            self._step()
        done = sum(job.source_tokens for job in admitted) + len(self._scheduler.running)
        rate = done / max(1e-6, time.monotonic() - now)
        self._tokens_per_second += 0.05 * (rate - self._tokens_per_second)

    def _encode(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.admitted = time.monotonic()
        inspected, encoded = [job for job in jobs if job.target], [job for job in jobs if not job.target]
        for job in inspected:
            arrays = self._runtime.attention(job.source, job.target)
            job.encoded = time.monotonic()
            _deliver(job, Attended(arrays, job.timings()))
        if not encoded:
            return self._scheduler.start([])
        result = self._runtime.encode([job.source for job in encoded])
        finished = time.monotonic()
        first = len(self._scheduler.running)
        starting = [job for job in encoded if job.decodes]
        self._scheduler.start(starting)
        self._cache.reserve(len(self._scheduler.running))
        row = first
        for index, job in enumerate(encoded):
            job.encoded = finished
            if job.decodes:
                for name, values in result.caches.items():
                    self._cache.store(name, row, values[index, :, : job.source_tokens])
                self._tokens[row], self._positions[row], self._lengths[row] = START, 0, job.source_tokens
                row += 1
            else:
                memory = result.memory[index, : job.source_tokens].copy()
                _deliver(job, Encoded(memory, job.timings()))

    def _step(self) -> None:
        running = self._scheduler.running
        rows = len(running)
        tokens, likely = self._runtime.step(
            self._cache, self._tokens[:rows], self._positions[:rows], self._lengths[:rows], k=1
        )
        self._tokens[:rows] = tokens[:, 0]
        self._positions[:rows] += 1
        finished = []
        for row, (job, token, score) in enumerate(
            zip(running, tokens[:, 0].tolist(), likely[:, 0].tolist(), strict=True)
        ):
            job.written.append(token)
            job.scores.append(score)
            if token == END or len(job.written) == job.limit:
                finished.append(row)
        self._free(finished, _finish)

    def _free(self, rows: list[int], farewell: Any) -> None:
        """Let the jobs in ``rows`` go and pack the rows that are left."""
        for row in rows:
            farewell(self._scheduler.running[row])
        for origin, row in self._scheduler.retire(rows):
            written, read = int(self._positions[origin]), int(self._lengths[origin])
            lengths = {name: read if name.startswith("cross_") else written for name in self._cache.arrays}
            self._cache.move(origin, row, lengths)
            for state in (self._tokens, self._positions, self._lengths):
                state[row] = state[origin]


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


def _finish(job: Job) -> None:
    reason: Literal["stop", "length"] = "stop" if job.written[-1] == END else "length"
    _deliver(job, Translated(job.written, job.scores, reason, job.timings()))
