"""Engines in turn, round after round, so that whatever drifts drifts for all of them; and the medians of that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

from serving.bench.booth import Batch, Booth, BoothError, Timed
from serving.bench.contestants import PEERS, Entrant, Seat
from serving.bench.machine import Machine
from serving.bench.subjects import Subject
from serving.bench.work import multiply_adds

SLOW = 60.0
"""Seconds one measurement may take; an engine that needs longer is left out of that cell."""
CUDA_BATCHES = 16
"""Batches of one measurement on a GPU, where every one is warmed up: 16 sentences one by one, all of 256 at 32 rows."""


@dataclass(frozen=True)
class Cell:
    """What is asked of every engine alike."""

    model: str
    beam_size: int
    rows: int
    threads: int
    device: str = "cpu"

    @property
    def search(self) -> str:
        """``greedy`` or ``beam 4``."""
        return "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.model}, {self.search}, {rows}, {where(self.device, self.threads)}"


def where(device: str, threads: int) -> str:
    """What an engine computes with, for people."""
    if device != "cpu":
        return device
    return "1 thread" if threads == 1 else f"{threads} threads"


@dataclass(frozen=True)
class Result:
    """One engine in one cell: medians over the rounds."""

    engine: str
    precision: str
    model: str
    search: str
    rows: int
    threads: int
    device: str
    tokens: int
    """Target tokens of a pass: about as many for every engine, or one of them does other work."""
    tokens_per_second: float
    latency_ms: float
    """From handing over a batch of ``rows`` sentences until the last of them is done: the mean over the batches."""
    times_peer: float | None
    """Tokens a second as a multiple of the peer's: the median of each round's ratio."""
    peer: str | None
    """The fastest of those that there are of the device's `PEERS`."""
    ceiling_share: float | None
    """Multiply-adds a second, as a share of the measured ceiling of that precision and number of threads."""
    setting: str
    """How the engine computed, where there was a choice."""
    rounds: tuple[float, ...]
    """Tokens a second of each round."""

    @property
    def where(self) -> str:
        """What it computed with, for people."""
        return where(self.device, self.threads)


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


def variants(entrant: Entrant, cell: Cell) -> list[Variant]:
    """CTranslate2 may also cut a batch among its threads; what is reported is the better of the two."""
    split = entrant.engine == "ctranslate2" and cell.device == "cpu" and cell.rows >= cell.threads > 1
    return [Variant(entrant, cut) for cut in ((False, True) if split else (False,))]


@dataclass(frozen=True)
class Plan:
    """What is to be measured with one subject."""

    device: str
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
    """Everything in ``plan``, cell by cell; ``progress`` is told before each pass and when a cell is done (``""``).

    An entrant that fails is left out from there on.
    """
    for threads in plan.threads:
        with ExitStack() as stack:
            field = Field(subject, plan, threads, stack, progress)
            for beam_size in plan.beams:
                for rows in plan.rows:
                    cell = Cell(subject.name, beam_size, rows, threads, plan.device)
                    yield from field.compete(cell, machine)
                    progress(cell, "")


class Field:
    """The entrants of a plan with one number of threads: started when they are first needed, and kept."""

    def __init__(
        self, subject: Subject, plan: Plan, threads: int, stack: ExitStack, progress: Callable[[Cell, str], None]
    ) -> None:
        self._subject, self._plan, self._stack, self._progress = subject, plan, stack, progress
        self._seat = Seat(subject.folder, plan.device, threads, max(plan.rows) * max(plan.beams))
        self._booths: dict[Variant, Booth] = {}
        self._failed: dict[Entrant, str] = {}

    def compete(self, cell: Cell, machine: Machine) -> Iterator[Result | Skipped]:
        """One cell: everybody warms up, and is then measured in turns."""
        found = self._subject.batches(cell.rows, None if cell.device == "cpu" else CUDA_BATCHES)
        batches = [(batch, self._subject.decoding(batch, cell.beam_size)) for batch in found]
        passes: dict[Variant, list[Timed]] = {}
        for entrant in self._plan.entrants:
            for variant in variants(entrant, cell):
                seconds = self._warm_up(variant, batches, cell)
                if seconds is None:
                    continue
                if seconds > SLOW:
                    yield Skipped(entrant, cell, f"a pass would take {seconds:.0f} s, more than {SLOW:.0f}")
                else:
                    passes[variant] = []
        for number in range(self._plan.repeats):
            # Each round begins with another: who comes after whom must not matter either.
            order = list(passes)[number % max(1, len(passes)) :] + list(passes)[: number % max(1, len(passes))]
            for variant in order:
                said = f"round {number + 1} of {self._plan.repeats}"
                if timed := self._measure(variant, batches, cell, said):
                    passes[variant].append(timed)
        yield from (Skipped(entrant, cell, reason) for entrant, reason in self._failed.items())
        whole = {variant: timings for variant, timings in passes.items() if variant.entrant not in self._failed}
        tokens = sum(len(source) for batch, _ in batches for source in batch)
        yield from summarise(cell, whole, len(batches), self._subject, tokens, machine)

    def _warm_up(self, variant: Variant, batches: Sequence[Batch], cell: Cell) -> float | None:
        """Seconds that a pass over ``batches`` will take, about; None when the entrant has failed."""
        largest = max(batches, key=lambda batch: sum(map(len, batch[0])))
        if cell.device != "cpu" and not self._measure(variant, batches, cell, "warming up every batch"):
            return None  # there is something to be made ready for every shape
        timed = self._measure(variant, [largest], cell, "warming up")
        return timed.seconds * len(batches) if timed else None

    def _measure(self, variant: Variant, batches: Sequence[Batch], cell: Cell, doing: str) -> Timed | None:
        """A pass of ``variant``; None when its entrant has failed, now or before."""
        entrant = variant.entrant
        if entrant in self._failed:
            return None
        try:
            if variant not in self._booths:
                self._progress(cell, f"{entrant.name}: loading")
                self._booths[variant] = booth = Booth(entrant, replace(self._seat, split=variant.split))
                self._stack.callback(booth.close)
            self._progress(cell, f"{entrant.name}: {doing}")
            return self._booths[variant].measure(batches)
        except BoothError as error:
            self._failed[entrant] = str(error)
            return None


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
    peers = [variant for entrant, variant in best.items() if entrant in PEERS[cell.device]]
    peer = max(peers, key=lambda variant: median(speeds[variant]), default=None)
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
                device=cell.device,
                tokens=passes[variant][-1].tokens,
                tokens_per_second=round(median(speeds[variant]), 2),
                latency_ms=round(median(timed.seconds for timed in passes[variant]) / batches * 1e3, 3),
                times_peer=round(median(ratios), 3) if ratios else None,
                peer=peer.entrant.name if peer else None,
                ceiling_share=round(median(work) / ceiling, 4) if ceiling else None,
                setting=passes[variant][-1].setting,
                rounds=tuple(round(speed, 2) for speed in speeds[variant]),
            )
        )
    return results


def against_peers(results: Sequence[Result]) -> list[Result]:
    """This engine's fastest result with the most rows (and threads), for each model and search."""
    ours: dict[tuple[str, str], Result] = {}
    for result in results:
        if result.engine != "dragoman":
            continue
        found = ours.setdefault((result.model, result.search), result)
        if _size(result) > _size(found):
            ours[result.model, result.search] = result
    return list(ours.values())


def _size(result: Result) -> tuple[int, int, float]:
    return result.rows, result.threads, result.tokens_per_second
