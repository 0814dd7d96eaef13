import math
import time
from pathlib import Path
from typing import Any

import pytest

from export.bundle import read_manifest
from model.tokenizer import Tokenizer
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import Job, translation
from serving.errors import QueueFull
from serving.runtime.cpu import CpuRuntime


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_client_that_returns_when_it_is_told_to_is_let_in(
    tiny_bundle: Path, tiny_tokenizer: Tokenizer, beam_size: int
) -> None:
    runtime = CpuRuntime(tiny_bundle, read_manifest(tiny_bundle), threads=1)
    engine = Engine(runtime, runtime.batch(4), encode_tokens=512, queue_tokens=3000, share=4)
    step = engine._batch.step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.005)
        return step(*arguments)

    engine._batch.step = slow  # type: ignore[method-assign]
    source = tiny_tokenizer.source("Keep this window open.", "de")

    def jobs(count: int) -> list[Job]:
        decoding = Decoding(max_tokens=16, beam_size=beam_size)
        return [translation(source, decoding, time.monotonic() + 60) for _ in range(count)]

    # Others keep it busy for long enough that it knows how fast it is.
    begin = time.monotonic()
    while time.monotonic() < begin + 1.5:
        try_to_submit(engine, jobs(1))
    late = jobs(2600 // jobs(1)[0].cost)
    begin = time.monotonic()
    with pytest.raises(QueueFull) as refused:
        engine.submit(late)
    while not try_to_submit(engine, late):
        pass
    waited = math.ceil(time.monotonic() - begin)
    engine.stop()
    assert waited >= 2
    assert waited / 3 <= refused.value.retry_after <= 3 * waited


def try_to_submit(engine: Engine, jobs: list[Job]) -> bool:
    try:
        engine.submit(jobs)
    except QueueFull:
        time.sleep(0.005)
        return False
    return True
