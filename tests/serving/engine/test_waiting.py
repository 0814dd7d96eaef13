import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.engine import waiting
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from serving.errors import DeadlineExceeded
from tests.serving.engine.engines import engine_of, greedy, soon


@pytest.fixture
def engine(where: str, tiny_bundle: Path) -> Iterator[Engine]:
    engine = engine_of(tiny_bundle)
    yield engine
    engine.stop()


def test_an_engine_that_hangs_is_given_up_a_little_after_the_deadline(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "HANGS_SECONDS", 0.1)
    monkeypatch.setattr(engine, "submit", lambda jobs: None)
    jobs = greedy([[9, 2], [8, 2]])
    with pytest.raises(DeadlineExceeded, match="not done within 60 s"):
        asyncio.run(waiting.results(engine, jobs, time.monotonic(), 60))
    assert all(job.cancelled for job in jobs)


def test_sentences_that_are_done_at_different_times_wake_whoever_waits_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> int:
        loop, woken = asyncio.get_running_loop(), 0
        waking = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> Any:
            nonlocal woken
            woken += 1
            return waking(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        # One of them is over at once, the other takes twenty steps.
        jobs = [translation([9, 2], Decoding(most, most), soon()) for most in (1, 20)]
        results = await waiting.results(engine, jobs, soon(), 120)
        assert [len(result.hypotheses[0].tokens) for result in results] == [1, 20]
        return woken

    assert asyncio.run(run()) == 1
