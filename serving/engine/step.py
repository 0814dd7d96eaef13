"""One decoding step: what searches ask of it, and what they make of what it finds."""

from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from serving.engine.jobs import Job, TranslationJob
from serving.engine.listeners import Listener, tell
from serving.runtime.interface import DecoderBatch
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, StepResult, Written

Blaming = Callable[[Job], AbstractContextManager[None]]
"""A context in which an exception ends that job, and nothing else."""


def take_step(
    batch: DecoderBatch, greedy: Mapping[Slot, TranslationJob], searching: Iterable[TranslationJob], blaming: Blaming
) -> list[TranslationJob]:
    """Take a step of ``batch``, whose slots are those of ``greedy`` jobs and of ``searching`` ones; returns the jobs
    that are done."""
    asks: dict[TranslationJob, list[Ask]] = {}
    for job in list(searching):
        with blaming(job):
            asks[job] = job.ask()
    if not len(batch):
        return []  # all have failed
    step = batch.step([ask for asked in asks.values() for ask in asked])
    done = _end_greedy(greedy, step.ended, blaming)
    if asks:
        done += _search(batch, asks, step, blaming)
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
