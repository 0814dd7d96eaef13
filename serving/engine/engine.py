"""The engine: one thread that owns the runtime, and works on everybody's requests at once.

Each turn it drops what is no longer wanted, admits some of what waits, encodes it, takes one decoding step for every
hypothesis whatever its position, and delivers what is finished. Whose turn it is the scheduler says.

What goes wrong with one job, or with the sentences that are encoded together, fails those and nobody else. Any other
exception ends the thread: what is not done fails with NotReady, and so does whatever comes. Nothing is known then of
the state that all requests share, so the process is replaced rather than mended (`Engine.when_broken`).
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from serving.engine.encoder_batches import encoder_batches
from serving.engine.intake import Intake
from serving.engine.jobs import AttentionJob, EncodingJob, Job, TranslationJob
from serving.engine.proven_thread import proven_thread
from serving.engine.scheduler import Scheduler
from serving.engine.translations import Translations
from serving.engine.work import Work
from serving.errors import BUG, NotReady, ServiceError
from serving.runtime.interface import DecoderBatch, Runtime

logger = logging.getLogger(__name__)


class Engine:
    """Runs jobs on a runtime in a thread of its own; every public method may be called from any thread."""

    def __init__(
        self,
        runtime: Runtime,
        batch: DecoderBatch,
        encode_tokens: int,
        queue_tokens: int,
        share: int,
        prove: Callable[[], object] = lambda: None,
        work: Work | None = None,
    ) -> None:
        """Start the thread, which begins with ``prove``; what that raises, this raises.

        What it does is counted in ``work``, before the results are delivered.
        """
        self.rows, self.queue_tokens = batch.rows, queue_tokens
        self.work = work or Work()
        self.when_broken: Callable[[BaseException], None] = lambda failure: None
        """Called at the end of the engine's thread, if an exception ends it, with that."""
        self._runtime, self._batch = runtime, batch
        self._scheduler: Scheduler[Job] = Scheduler(batch.rows, encode_tokens, share)
        self._intake: Intake[Job] = Intake(self._scheduler, queue_tokens)
        self._translations = Translations(batch, self._blaming)
        self._failure: BaseException | None = None
        try:
            self._thread = proven_thread("engine", prove, self._run)
        except BaseException:  # an interrupt, too
            self._intake.close("the engine did not start")
            raise

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all ``jobs`` of a request, or none, with QueueFull, NotReady or ValueError; each has its ``future``."""
        for job in jobs:
            if job.rows > self.rows:
                raise ValueError(f"a job wants {job.rows} rows; there are {self.rows}")
            if misfit := job.misfit(self._runtime.manifest):
                raise ValueError(f"a job does not fit the model: {misfit}")
        self._intake.put(jobs)

    def check_room(self, cost: int) -> None:
        """QueueFull when a request of ``cost`` tokens, counted as half the queue at most, does not fit."""
        self._intake.check_room(cost)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop work on ``jobs`` within one step; nothing happens to those already done."""
        self._intake.cancel(jobs)

    def stop(self) -> None:
        """Refuse new jobs, fail those not done with NotReady, end the thread."""
        self._intake.close("the engine has stopped")
        self._thread.join()

    @property
    def waiting_tokens(self) -> int:
        """Tokens of jobs that have not been encoded yet."""
        return self._intake.waiting_tokens

    @property
    def rows_in_use(self) -> int:
        """Hypotheses being decoded, of `rows` at most."""
        return len(self._batch)

    @property
    def load(self) -> float:
        """Rows that are used or waited for, over all there are; what is only encoded counts for one."""
        return self._intake.load / self.rows

    def check_health(self, patience: float = 60.0) -> None:
        """RuntimeError when the thread is dead, or has work and took no turn for ``patience`` seconds."""
        if self._failure is not None or not self._thread.is_alive():
            raise RuntimeError(f"the engine's thread has ended: {self._failure}")
        idle = time.monotonic() - self._intake.handed_over
        if len(self._scheduler) and idle > patience:
            raise RuntimeError(f"the engine has work and took no turn for {idle:.0f} s")

    def _run(self) -> None:
        try:
            while not self._intake.closed:
                self._turn()
        except BaseException as failure:
            logger.exception("the engine's thread has ended")
            self._failure = failure
            self._intake.close(f"the engine: {failure}")
        for job in self._intake.clear():
            job.fail(NotReady("the engine stopped before this was done"))
        if self._failure is not None:
            self.when_broken(self._failure)

    def _turn(self) -> None:
        while not self._intake.has_work and self._batch.tidy():
            pass  # a little at a time: whoever comes meanwhile does not wait for all of it
        someone_left = self._intake.hand_over()
        if self._intake.closed:
            return
        begin = time.monotonic()
        for job in self._scheduler.drop(begin, someone_left):
            job.give_up()
            self._translations.release(job)
        if admitted := self._scheduler.take_turn(begin):
            self._scheduler.start(self._encode(admitted), time.monotonic())
        if self._scheduler.running:
            self._step()
        self._scheduler.end_turn(time.monotonic() - begin)

    def _encode(self, jobs: Sequence[Job]) -> list[TranslationJob]:
        """Encode ``jobs`` and finish those that want no more; returns the translations, which have slots now."""
        started: list[TranslationJob] = []
        for job in jobs:
            job.admitted = time.monotonic()
            if isinstance(job, AttentionJob):
                with self._blaming(job):
                    job.finish(self._runtime)
        cost = self._runtime.encoder_cost
        batches = encoder_batches([job for job in jobs if not isinstance(job, AttentionJob)], cost)
        results = self._runtime.encode([[job.source for job in batch] for batch in batches])
        for batch, result in zip(batches, results, strict=True):
            if not isinstance(result, Exception):
                self.work.encoded(sum(job.source_tokens for job in batch), len(batch) * result.positions)
            encoded = time.monotonic()
            for index, job in enumerate(batch):
                job.encoded = encoded
                with self._blaming(job):
                    if isinstance(result, Exception):
                        raise result
                    if isinstance(job, TranslationJob):
                        self._translations.start(job, result, index)
                        started.append(job)
                    elif isinstance(job, EncodingJob):
                        job.finish(self._runtime, result, index)
        return started

    def _step(self) -> None:
        self.work.stepped(len(self._batch))
        done = self._translations.step()
        self._scheduler.finish(done)
        for job in done:
            self._translations.release(job)
            with self._blaming(job):
                job.finish()

    @contextlib.contextmanager
    def _blaming(self, job: Job) -> Iterator[None]:
        """What goes wrong in here ends ``job`` alone."""
        try:
            yield
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """End ``job``, whose own work ended in ``error``: whoever shares the engine with it goes on."""
        logger.error("a job failed", exc_info=error)
        self._translations.release(job)
        if job in self._scheduler.running:
            self._scheduler.finish([job])
        job.fail(ServiceError(BUG))
