"""The memory of rows on the CPU, as an engine takes it and gives it back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.exporter import Precision
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from tests.serving.conftest import wait_until
from tests.serving.engine.engines import Held, engine_of, run, soon

SOURCES = [[4, *range(20 + number, 30 + number), 3] for number in range(8)]


@pytest.fixture
def engine(lively_bundle: Callable[[Precision], Path]) -> Iterator[Engine]:
    built = engine_of(lively_bundle("fp32"))
    yield built
    built.stop()


def memory_of(engine: Engine) -> Any:
    return engine._batch._cache  # type: ignore[attr-defined]


def test_rows_that_were_long_give_their_memory_back_when_they_are_done(engine: Engine) -> None:
    long = [translation(source, Decoding(120, min_tokens=120), soon()) for source in SOURCES[:6]]
    run(engine, [*long, translation(SOURCES[6], Decoding(100, min_tokens=100, beam_size=4), soon())])
    wait_until(lambda: not memory_of(engine).deep())
    arrays = memory_of(engine).arrays
    page = np.zeros(4096, np.uint8).nbytes
    # But for the pages that rows share with their neighbours.
    for name in ("self_key_0", "cross_value_1"):
        rows = arrays[name].reshape(engine.rows, -1).view(np.uint8)
        assert all(not row[page:-page].any() for row in rows if row.nbytes > 2 * page)


def test_a_row_gives_its_memory_back_while_others_go_on(engine: Engine) -> None:
    held = Held(engine)
    [long], [stays] = (
        [translation(source, Decoding(count, min_tokens=count), soon())]
        for source, count in ((SOURCES[0], 80), (SOURCES[1], 120))
    )
    engine.submit([long])
    engine.submit([stays])
    held.let_go(80)
    long.future.result(timeout=60)
    held.let_go(4)
    held.next()
    assert memory_of(engine).deep() == [0]  # the one that stays, which was moved there
    held.finish([stays])
