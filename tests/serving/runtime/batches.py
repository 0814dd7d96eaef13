"""What the tests of the runtime share: batches that hold some sources, and steps taken in their rows."""

from collections.abc import Callable
from pathlib import Path

from export.bundle import read_manifest
from model.tokenizer import END
from serving.runtime.batch import RowBatch
from serving.runtime.cpu import CpuRuntime
from serving.runtime.cpu_decoder import CpuDecoder
from serving.runtime.threading_strategy import Strategy

SOURCES = [[4, 9, END], [4, 9, 9, 9, END], [4, *range(20, 50), END]]


def runtime_of(bundle: Path, threads: int = 1) -> CpuRuntime:
    return CpuRuntime(bundle, read_manifest(bundle), threads)


def begin(runtime: CpuRuntime, sources: list[list[int]], rows: int = 8) -> RowBatch:
    """A batch that holds ``sources``, each in the row of its number, before their first step."""
    batch = runtime.batch(rows)
    [encoded] = runtime.encode([sources])
    assert not isinstance(encoded, Exception)
    for index, source in enumerate(sources):
        batch.admit(encoded, index, len(source), limit=0)
    return batch


def write(batch: RowBatch, rows: int, steps: int) -> list[list[float]]:
    """Greedy tokens of the first ``rows`` rows and their log-probabilities, step by step."""
    written = []
    for _ in range(steps):
        arrays = batch._decoder.step(rows, 2, False)
        written.append([*arrays.tokens[:, 0].tolist(), *arrays.log_probabilities[:, 0].tolist()])
        batch._state.advance(arrays.tokens[:, 0], arrays.log_probabilities[:, 0])
    return written


def decoder_of(batch: RowBatch, strategy: Callable[..., Strategy] | None = None) -> CpuDecoder:
    """The decoder of ``batch``, whose strategy becomes the one that ``strategy`` names for so many rows."""
    decoder = batch._decoder
    assert isinstance(decoder, CpuDecoder)
    if strategy:
        decoder.strategy.choose = strategy  # type: ignore[method-assign]
    return decoder
