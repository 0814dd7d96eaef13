"""What the tests of the engine share: engines, requests of every kind, and steps that wait to be let go."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from export.bundle import read_manifest
from model.tokenizer import END
from serving.engine.decoding import Decoding, Sampling
from serving.engine.engine import Engine
from serving.engine.jobs import Job, translation
from serving.runtime.cpu import CpuRuntime
from serving.runtime.interface import Runtime
from tests.serving.runtime.fake_device import device_runtime


def cpu_runtime(bundle: Path, threads: int) -> Runtime:
    return CpuRuntime(bundle, read_manifest(bundle), threads)


def fake_runtime(bundle: Path, threads: int) -> Runtime:
    """On the fake device, which has one thread."""
    if read_manifest(bundle).precision == "int8":
        pytest.skip("int8 is for the CPU alone")
    return device_runtime(bundle)


RUNTIMES: list[Callable[[Path, int], Runtime]] = [cpu_runtime]
"""The last makes the runtimes of the engines here."""


def engine_of(
    bundle: Path, threads: int = 1, rows: int = 16, encode_tokens: int = 512, queue: int = 10**9, share: int = 10**9
) -> Engine:
    runtime = RUNTIMES[-1](bundle, threads)
    return Engine(runtime, runtime.batch(rows), encode_tokens, queue, share)


def soon() -> float:
    return time.monotonic() + 120


def run(engine: Engine, jobs: Sequence[Job]) -> list[Any]:
    engine.submit(jobs)
    return [job.future.result(timeout=120) for job in jobs]


def greedy(sources: Sequence[list[int]], max_tokens: int = 12) -> list[Job]:
    return [translation(source, Decoding(max_tokens), soon()) for source in sources]


def mixed(sources: Sequence[list[int]], seed: int, longest: int = 20, most_rows: int = 7) -> list[Decoding]:
    """A decoding for each of ``sources``: plain, or greedy, beam or sampling, with and without prefix and rules.

    A prefix is cut out of another source.
    """
    choices, found = random.Random(seed), []
    for _ in sources:
        kind = choices.choice(["plain", "greedy", "beam", "sample"])
        if kind == "plain":
            found.append(Decoding(choices.randint(1, longest)))
            continue
        beam_size = choices.choice([size for size in (2, 3, 4, 7) if size <= most_rows]) if kind == "beam" else 1
        words = [token for token in choices.choice(sources) if token != END]
        found.append(
            Decoding(
                max_tokens=choices.randint(1, longest),
                min_tokens=choices.choice([0, 0, 3, 9]),
                beam_size=beam_size,
                alternatives=choices.randint(1, beam_size),
                length_penalty=choices.choice([0.0, 0.6, 1.0, 1.5]),
                no_repeat_ngram=choices.choice([0, 0, 0, 1, 2, 3]),
                prefix=tuple(words[: choices.choice([0, 0, 0, 1, 4])]),
                sampling=_sampling(choices) if kind == "sample" else None,
            )
        )
    return found


def _sampling(choices: random.Random) -> Sampling:
    return Sampling(
        temperature=choices.choice([0.5, 1.0, 1.7]),
        top_k=choices.choice([1, 5, 20, 50]),
        top_p=choices.choice([0.4, 0.9, 1.0]),
        seed=choices.getrandbits(64),
        stream=choices.randint(0, 3),
    )


class Held:
    """Holds back every step of an engine until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.taken: list[int] = []
        """Rows of the steps let go so far."""
        self._engine, self._batch, self._step = engine, engine._batch, engine._batch.step
        self._due: list[int] = []
        self._changed = threading.Condition()
        self._allowed = 0
        engine._batch.step = self._hold  # type: ignore[method-assign]

    def _hold(self, asks: Any) -> Any:
        rows = len(self._batch)
        with self._changed:
            self._due.append(rows)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: len(self.taken) < self._allowed, 120), "nobody lets this step go"
            self.taken.append(rows)
        return self._step(asks)

    def next(self) -> int:
        """Rows of the step that waits to be let go, as soon as there is one."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._due) > self._allowed, 60), "no step comes"
            return self._due[self._allowed]

    def let_go(self, steps: int = 1) -> None:
        """Take so many steps, and wait for each to begin."""
        for _ in range(steps):
            self.next()
            with self._changed:
                self._allowed += 1
                self._changed.notify_all()

    def release(self) -> None:
        """Hold nothing back from now on."""
        with self._changed:
            self._allowed = 10**9
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop the engine in the middle of a step, which is its last."""
        self.next()
        stopping = threading.Thread(target=self._engine.stop)
        stopping.start()
        while not self._engine._intake.closed:
            time.sleep(0.001)
        self.release()
        stopping.join()

    def finish(self, jobs: Sequence[Job]) -> None:
        """Hold nothing back any more, and wait until ``jobs`` have their results."""
        self.release()
        for job in jobs:
            job.future.result(timeout=60)
