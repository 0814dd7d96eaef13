"""How long a decoding step takes: in the engine, in the decoder batch behind it, and the decoder graph's alone.

All rows read 32 source tokens and decode greedily side by side. In the engine a step is the time between 8 tokens and
24, divided by 16: encoding, admission and delivery are in both. In the batch, which chooses tokens and notes who ends,
it is the same steps timed one by one. The graph's is timed at one position, over and over, with its few inputs copied
in and its k = 2 likeliest tokens copied out; nobody chooses. Figures are medians over the repeats.

Run: python -m serving.bench.steps en-de-base --rows 1,32,128
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from export.bundle import BundleError, locate, read_manifest
from serving.bench.run import whole_number
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from serving.runtime.batch import RowBatch
from serving.runtime.devices import DEVICES, runtime_on
from serving.runtime.interface import Runtime

SOURCE_TOKENS = 32
FEWER, MORE = 8, 24
"""Target tokens of the two lengths between which steps are timed."""
MOST_ROWS = 4096
TRIED = 256
"""Random sources among which some are looked for whose translation does not end too soon."""


@dataclass(frozen=True)
class Steps:
    """Milliseconds of one step."""

    rows: int
    engine_ms: float
    batch_ms: float
    graph_ms: float

    @property
    def engine_times_graph(self) -> float:
        """What the engine makes of a step, as a multiple of the graph's."""
        return self.engine_ms / self.graph_ms


def measure(runtime: Runtime, rows: Sequence[int], repeats: int) -> list[Steps]:
    """Steps of each of ``rows``, the fewest first; ValueError when every source that was tried ends too soon."""
    sources: list[list[int]] = []
    found = []
    for count in sorted(rows, reverse=True):
        # On a GPU a step takes all rows there is room for.
        batch = runtime.batch(count)
        assert isinstance(batch, RowBatch)
        # Everybody is encoded in one turn, so all decode from their first step to their last side by side.
        engine = Engine(runtime, batch, count * SOURCE_TOKENS, sys.maxsize, count)
        try:
            sources = sources or _lasting(engine, runtime.manifest.model.vocabulary, count)
            seconds = _in_engine(engine, sources[:count], repeats)
        finally:
            engine.stop()
        own, graph = _in_batch(runtime, batch, sources[:count], repeats)
        found.append(Steps(count, *(round(each * 1e3, 4) for each in (seconds, own, graph))))
    return found[::-1]


def _lasting(engine: Engine, vocabulary: int, count: int) -> list[list[int]]:
    """So many sources, not all different, whose translations do not end before `MORE` tokens."""
    random = np.random.default_rng(0)
    # Token ids without the special ones.
    tried: list[list[int]] = random.integers(4, vocabulary, (TRIED, SOURCE_TOKENS)).tolist()
    lasting: list[list[int]] = []
    for begin in range(0, TRIED, engine.rows):
        part = tried[begin : begin + engine.rows]
        lengths, _ = _translate(engine, part, MORE)
        lasting += [source for source, length in zip(part, lengths, strict=True) if length == MORE]
        if len(lasting) >= count:
            break
    if not lasting:
        raise ValueError(f"the translations of all {TRIED} random sources end before {MORE} tokens")
    return (lasting * -(-count // len(lasting)))[:count]


def _translate(engine: Engine, sources: list[list[int]], tokens: int) -> tuple[list[int], float]:
    """The lengths of translations of ``tokens`` at most, and the seconds from the last encoding to the last end."""
    jobs = [translation(source, Decoding(tokens), time.monotonic() + 600) for source in sources]
    engine.submit(jobs)
    found = [job.future.result() for job in jobs]
    ends = [job.encoded + result.timings.decode for job, result in zip(jobs, found, strict=True)]
    return [len(result.hypotheses[0].tokens) for result in found], max(ends) - max(job.encoded for job in jobs)


def _in_engine(engine: Engine, sources: list[list[int]], repeats: int) -> float:
    """Seconds of a step with all ``sources`` side by side."""

    def one() -> float:
        fewer, more = (_translate(engine, sources, tokens)[1] for tokens in (FEWER, MORE))
        return (more - fewer) / (MORE - FEWER)

    return _median(one, repeats)


def _in_batch(runtime: Runtime, batch: RowBatch, sources: list[list[int]], repeats: int) -> tuple[float, float]:
    """Seconds of a step of ``batch``, which is empty, with ``sources``; and of its decoder graph alone."""
    encoded = next(iter(runtime.encode([sources])))
    if isinstance(encoded, Exception):
        raise encoded
    rows, limit = len(sources), runtime.manifest.limits.target_tokens

    def in_batch() -> float:
        slots = [batch.admit(encoded, index, SOURCE_TOKENS, limit) for index in range(rows)]
        try:
            for _ in range(FEWER):
                batch.step(())
            return _mean(lambda: batch.step(()), MORE - FEWER)
        finally:
            batch.release(slots)

    # The rows are free by then, and hold what the last of them has written.
    decoder = batch._decoder
    own = _median(in_batch, repeats)
    return own, _median(lambda: _mean(lambda: decoder.step(rows, 2, False), MORE - FEWER), repeats)


def _mean(call: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def _median(once: Callable[[], float], repeats: int) -> float:
    """Of so many, after one that is for warming up."""
    once()
    return median(once() for _ in range(repeats))


def _rows(text: str) -> list[int]:
    rows = [whole_number(each) for each in text.split(",")]
    if max(rows) > MOST_ROWS:
        raise argparse.ArgumentTypeError(f"{max(rows)} rows are more than {MOST_ROWS}")
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; returns the exit status."""
    parser = argparse.ArgumentParser("python -m serving.bench.steps", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", help="a bundle that ships, or a folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what to compute on (cpu)")
    parser.add_argument(
        "--rows", type=_rows, default=[1, 32, 128], help=f"rows of a step, {MOST_ROWS} at most, by commas (1,32,128)"
    )
    parser.add_argument("--threads", type=whole_number, default=1, help="threads to compute with on the CPU (1)")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="record steps on a GPU, as the setting cuda_graphs does"
    )
    parser.add_argument("--repeats", type=whole_number, default=5, help="measurements of each figure (5)")
    options = parser.parse_args(arguments)
    if options.cuda_graphs and options.device == "cpu":
        parser.error("--cuda-graphs is for --device cuda: a CPU records no steps")
    console = Console(stderr=True, highlight=False)
    try:
        folder = locate(options.bundle)
        manifest, graphs = read_manifest(folder), options.cuda_graphs
        runtime = runtime_on(options.device, folder, manifest, options.threads, cuda_graphs=graphs)
        found = measure(runtime, options.rows, options.repeats)
    except (BundleError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    table = Table("rows", "engine, ms", "batch, ms", "graph, ms", "engine / graph")
    for steps in found:
        figures = steps.engine_ms, steps.batch_ms, steps.graph_ms
        table.add_row(str(steps.rows), *(f"{each:.3f}" for each in figures), f"{steps.engine_times_graph:.2f}")
    console.print(table)
    said = [asdict(steps) | {"engine_times_graph": round(steps.engine_times_graph, 3)} for steps in found]
    what = {"bundle": str(options.bundle), "device": options.device, "cuda_graphs": options.cuda_graphs}
    print(json.dumps(what | {"steps": said}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
