"""Translations under way, and their steps: what searches ask of one, and what they make of what it finds."""

from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from serving.engine.jobs import Job, TranslationJob
from serving.engine.listeners import Listener, tell
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import DecoderBatch
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, StepResult, Written

Blaming = Callable[[Job], AbstractContextManager[None]]
"""A context in which an exception ends that job, and nothing else."""


class Translations:
    """The jobs that have slots in a decoder batch, and the steps that are taken for all of them.

    A step looks at nobody who has nothing to decide: there may be hundreds of them.
    """

    def __init__(self, batch: DecoderBatch, blaming: Blaming) -> None:
        self._batch, self._blaming = batch, blaming
        self._greedy: dict[Slot, TranslationJob] = {}
        """By their slots, the jobs that the decoder batch writes by itself."""
        self._searching: dict[TranslationJob, None] = {}
        """The others, in the order in which they came."""

    def start(self, job: TranslationJob, encoded: EncodedBatch, index: int) -> None:
        """Give ``job`` a slot for its source, which is at ``index`` of what was ``encoded``."""
        job.start(self._batch, encoded, index)
        if job.greedy:
            self._greedy[job.slots[0]] = job
        else:
            self._searching[job] = None

    def release(self, job: Job) -> None:
        """Free the slots of ``job``, if it has any."""
        if isinstance(job, TranslationJob) and job.slots:
            self._greedy.pop(job.slots[0], None)
            self._searching.pop(job, None)
            self._batch.release(job.slots)
            job.slots = []

    def step(self) -> list[TranslationJob]:
        """Take a step; returns the jobs that are done, which keep their slots until they are released."""
        asks: dict[TranslationJob, list[Ask]] = {}
        for job in list(self._searching):
            with self._blaming(job):
                asks[job] = job.ask()
        if not len(self._batch):
            return []  # all have failed
        step = self._batch.step([ask for asked in asks.values() for ask in asked])
        done = _end_greedy(self._greedy, step.ended, self._blaming)
        if asks:
            done += _search(self._batch, asks, step, self._blaming)
        return done


def _end_greedy(
    greedy: Mapping[Slot, TranslationJob], ended: Sequence[Written], blaming: Blaming
) -> list[TranslationJob]:
    """Take what greedy slots have written that ``ended`` in this step; returns their jobs."""
    done = []
    for written in ended:
        job = greedy[written.slot]
        with blaming(job):
            job.take(written)
            done.append(job)
    return done


def _search(
    batch: DecoderBatch, asks: dict[TranslationJob, list[Ask]], step: StepResult, blaming: Blaming
) -> list[TranslationJob]:
    """Let searches choose from what this ``step`` found; returns the jobs that are done."""
    done: list[TranslationJob] = []
    continuations: dict[TranslationJob, Continuation] = {}
    heard: dict[AbstractEventLoop, list[tuple[Listener, int]]] = defaultdict(list)
    for job, asked in asks.items():
        with blaming(job):
            continuation = job.advance(step, asked)
            if job.listener:
                heard[job.listener.loop].append((job.listener, job.search.last))
            if continuation:
                continuations[job] = continuation
            else:
                done.append(job)
    for job, slots in zip(continuations, batch.reorder(list(continuations.values())), strict=True):
        job.slots = slots
    tell(heard)
    return done
