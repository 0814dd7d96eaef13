"""The jobs of one request, from the event loop that waits for them to the engine's thread and back."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from serving.engine.engine import Engine
from serving.engine.jobs import Job
from serving.errors import DeadlineExceeded

HANGS_SECONDS = 5.0
"""After its deadline: so long is waited for an engine that should have kept it."""


async def results(engine: Engine, jobs: Sequence[Job], deadline: float, timeout: float) -> list[Any]:
    """Submit ``jobs``, and give their results in order; whatever ends this early also ends the work.

    ``deadline`` is on the clock of ``time.monotonic``, ``timeout`` the seconds that DeadlineExceeded names.
    """
    engine.submit(jobs)
    try:
        # The engine keeps the deadline; this one speaks up when the engine itself hangs.
        await _all_done(jobs, max(0.0, deadline - time.monotonic()) + HANGS_SECONDS)
        for job in jobs:
            if _failed(job.future):
                job.future.result()
        return [job.future.result(timeout=0) for job in jobs]
    except (TimeoutError, DeadlineExceeded) as error:
        error.__traceback__ = None  # leads here, and so to the job that keeps the error
        raise DeadlineExceeded(timeout) from None
    finally:
        if not all(job.future.done() for job in jobs):
            engine.cancel(jobs)


async def _all_done(jobs: Sequence[Job], seconds: float) -> None:
    """Wait until all ``jobs`` are done or one has failed, ``seconds`` at most; the engine wakes the event loop once."""
    if not jobs:
        return
    # The jobs' futures keep the callback, which therefore must not know the jobs: they would lie about in circles until
    # Python looks for such garbage, once in minutes.
    loop, last, done = asyncio.get_running_loop(), len(jobs), itertools.count(1)
    waiting: asyncio.Future[None] = loop.create_future()

    def go_on() -> None:
        if not waiting.done():
            waiting.set_result(None)

    def count(future: "Future[Any]") -> None:
        if next(done) == last or _failed(future):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(go_on)

    for job in jobs:
        job.future.add_done_callback(count)
    limit = loop.call_later(seconds, go_on)
    try:
        await waiting
    finally:
        limit.cancel()


def _failed(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None
