"""Engines in turn, round after round, so that whatever drifts drifts for all of them; and the medians of that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from serving.bench.booth import Booth, Timed
from serving.bench.machine import Machine
from serving.bench.subjects import Subject
from serving.bench.work import multiply_adds

SLOW = 60.0
"""Seconds one measurement may take; an engine that needs longer is left out of that cell."""


@dataclass(frozen=True)
class Entrant:
    """An engine at a precision."""

    engine: str
    precision: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.engine} {self.precision}"


PEER = Entrant("ctranslate2", "int8")
"""What everybody is compared with."""


@dataclass(frozen=True)
class Cell:
    """What is asked of every engine alike."""

    model: str
    beam_size: int
    rows: int
    threads: int

    @property
    def search(self) -> str:
        """``greedy`` or ``beam 4``."""
        return "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.model}, {self.search}, {rows}, {threads}"


@dataclass(frozen=True)
class Result:
    """One engine in one cell: medians over the rounds."""

    engine: str
    precision: str
    model: str
    search: str
    rows: int
    threads: int
    tokens_per_second: float
    latency_ms: float
    """From handing over a batch of ``rows`` sentences until the last of them is done: the mean over the batches."""
    times_ctranslate2_int8: float | None
    """Tokens a second as a multiple of CTranslate2's in int8: the median of each round's ratio."""
    ceiling_share: float | None
    """Multiply-adds a second, as a share of the measured ceiling of that precision and number of threads."""
    setting: str
    """How the engine used its threads, where there was a choice."""
    rounds: tuple[float, ...]
    """Tokens a second of each round."""


@dataclass(frozen=True)
class Skipped:
    """One engine that was left out of one cell."""

    entrant: Entrant
    cell: Cell
    reason: str


@dataclass(frozen=True)
class Variant:
    """An entrant with a way of using its threads."""

    entrant: Entrant
    split: bool
    threads: int

    @property
    def setting(self) -> str:
        """In the words of the engine."""
        if self.entrant.engine != "ctranslate2":
            return ""
        inter, intra = (self.threads, 1) if self.split else (1, self.threads)
        return f"inter_threads={inter}, intra_threads={intra}"


def variants(entrant: Entrant, threads: int, rows: int) -> list[Variant]:
    """CTranslate2 may also cut a batch among its threads; what is reported is the better of the two."""
    split = entrant.engine == "ctranslate2" and threads > 1 and rows >= threads
    return [Variant(entrant, cut, threads) for cut in ((False, True) if split else (False,))]


def excuse(entrant: Entrant, beam_size: int) -> str | None:
    """Why ``entrant`` cannot take part, if so."""
    if entrant.engine == "pytorch" and beam_size > 1:
        return "model/search.py searches beams one sentence at a time, for comparing and not for speed"
    return None


@dataclass(frozen=True)
class Plan:
    """What is to be measured with one subject."""

    entrants: Sequence[Entrant]
    beams: Sequence[int]
    rows: Sequence[int]
    threads: Sequence[int]
    repeats: int

    @property
    def cells(self) -> int:
        """How many `measure` goes through."""
        return len(self.beams) * len(self.rows) * len(self.threads)


def measure(
    subject: Subject, plan: Plan, machine: Machine, progress: Callable[[Cell, str], None]
) -> Iterator[Result | Skipped]:
    """Everything in ``plan``, cell by cell; ``progress`` is told before each pass and when a cell is done (``""``)."""
    for threads in plan.threads:
        with ExitStack() as stack:
            booths: dict[Variant, Booth] = {}
            for beam_size in plan.beams:
                for rows in plan.rows:
                    cell = Cell(subject.name, beam_size, rows, threads)
                    taking_part = []
                    for entrant in plan.entrants:
                        if reason := excuse(entrant, beam_size):
                            yield Skipped(entrant, cell, reason)
                            continue
                        for variant in variants(entrant, threads, rows):
                            if variant not in booths:
                                progress(cell, f"{entrant.name}: loading")
                                hypotheses = max(plan.rows) * max(plan.beams)
                                booth = Booth(
                                    *(entrant.engine, entrant.precision, subject.folder, threads),
                                    *(hypotheses, variant.split),
                                )
                                booths[variant] = booth
                                stack.callback(booth.close)
                            taking_part.append(variant)
                    yield from _cell(
                        subject, cell, {v: booths[v] for v in taking_part}, plan.repeats, machine, progress
                    )
                    progress(cell, "")


def _cell(
    subject: Subject,
    cell: Cell,
    booths: dict[Variant, Booth],
    repeats: int,
    machine: Machine,
    progress: Callable[[Cell, str], None],
) -> Iterator[Result | Skipped]:
    batches = [(batch, subject.decoding(batch, cell.beam_size)) for batch in subject.batches(cell.rows)]
    largest = max(batches, key=lambda batch: sum(map(len, batch[0])))
    running = dict(booths)
    for variant, booth in booths.items():
        progress(cell, f"{variant.entrant.name}: warming up")
        expected = booth.measure([largest]).seconds * len(batches)
        if expected > SLOW:
            del running[variant]
            yield Skipped(variant.entrant, cell, f"a pass would take {expected:.0f} s, more than {SLOW:.0f}")
    passes: dict[Variant, list[Timed]] = {variant: [] for variant in running}
    for number in range(repeats):
        # Each round begins with another: who comes after whom must not matter either.
        order = list(running)[number % max(1, len(running)) :] + list(running)[: number % max(1, len(running))]
        for variant in order:
            progress(cell, f"{variant.entrant.name}: round {number + 1} of {repeats}")
            passes[variant].append(running[variant].measure(batches))
    yield from summarise(cell, passes, len(batches), subject, sum(len(s) for b, _ in batches for s in b), machine)


def summarise(
    cell: Cell,
    passes: dict[Variant, list[Timed]],
    batches: int,
    subject: Subject,
    source_tokens: int,
    machine: Machine,
) -> list[Result]:
    """Medians of ``passes`` over ``batches`` batches, ``source_tokens`` in all; of an entrant's variants the better."""
    speeds = {variant: [timed.tokens / timed.seconds for timed in timings] for variant, timings in passes.items()}
    best: dict[Entrant, Variant] = {}
    for variant in sorted(passes, key=lambda variant: median(speeds[variant])):
        best[variant.entrant] = variant
    peer = best.get(PEER)
    results = []
    for entrant in dict.fromkeys(variant.entrant for variant in passes):
        variant = best[entrant]
        ceiling = machine.ceiling(entrant.precision, cell.threads)
        work = [
            multiply_adds(subject.config, source_tokens, timed.tokens, cell.beam_size) / timed.seconds
            for timed in passes[variant]
        ]
        ratios = [own / its for own, its in zip(speeds[variant], speeds[peer], strict=True)] if peer else None
        results.append(
            Result(
                engine=entrant.engine,
                precision=entrant.precision,
                model=cell.model,
                search=cell.search,
                rows=cell.rows,
                threads=cell.threads,
                tokens_per_second=round(median(speeds[variant]), 2),
                latency_ms=round(median(timed.seconds for timed in passes[variant]) / batches * 1e3, 3),
                times_ctranslate2_int8=round(median(ratios), 3) if ratios else None,
                ceiling_share=round(median(work) / ceiling, 4) if ceiling else None,
                setting=variant.setting,
                rounds=tuple(round(speed, 2) for speed in speeds[variant]),
            )
        )
    return results
