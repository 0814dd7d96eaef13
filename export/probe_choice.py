"""Which sentences become a bundle's probes (`export.probes`): those whose tokens are the surest, and a long one."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.probes import LAST, PAST, TOLERANCES, Probe, Probes, Tolerance
from export.stepper import Stepper
from model.corpus import pad
from model.tokenizer import END, START

Array = NDArray[Any]
COUNT = 8
"""Short probes; there is a long one besides."""
LONG = 136
"""Tokens of a long probe at most."""
LEAST = 4
"""Tokens that a probe has at least, unless there are no others."""
NOTICED = 1.2
"""A fault is noticed if it changes a probe's mean log-probability by more than so many tolerances."""
REPEATED = 16
"""The surest sentences, of which a long one is made."""
SHORT = 24
"""Tokens of the others at most: a replica is to be ready soon."""
ROWS = 32


class Run(NamedTuple):
    """Greedy search in one row."""

    tokens: list[int]
    log_probabilities: list[float]
    margins: list[float]

    def sure(self, margin: float) -> int:
        """How many tokens there are before the first whose lead is not more than ``margin``."""
        return next((index for index, each in enumerate(self.margins) if each <= margin), len(self.margins))


def choose(stepper: Stepper, sources: Sequence[list[int]], precision: str, longest: int) -> Probes:
    """Probes out of ``sources`` (token ids), for a bundle whose targets have ``longest`` tokens at most."""
    tolerance = TOLERANCES[precision]
    limit = min(SHORT, longest)
    probes = _probes(stepper, [source for source in sources if len(source) <= limit], limit, tolerance)
    noticed = {probe: _notices(stepper, probe, tolerance) for probe in probes}

    def order(probe: Probe) -> tuple[bool, int, bool, float]:
        """First what does not end at once, for rows are to be full; then what notices most; then what is whole."""
        return len(probe.tokens) < LEAST, -noticed[probe], probe.tokens[-1] != END, -probe.margin

    ranked = sorted(probes, key=order)
    short = _various([probe for probe in ranked if noticed[probe]])
    parts = [list(probe.source) for probe in ranked[:REPEATED]]
    pairs = [[*one[:-1], *other[1:]] for one, other in itertools.pairwise(parts) if one[0] == other[0]]
    repeated = [_repeated(source, min(longest, LONG)) for source in parts + pairs]
    long = _probes(stepper, repeated, min(LONG, longest), tolerance)
    # Of those that are long enough the one of the most different tokens, else the longest.
    long.sort(key=lambda probe: (min(len(probe.tokens), PAST), len(set(probe.tokens)), probe.margin))
    chosen = [*short, *long[-1:]]
    return Probes(
        margin=tolerance.margin,
        tolerance=tolerance.mean_log_probability,
        longest=max((len(probe.tokens) for probe in chosen), default=0),
        probes=tuple(chosen),
    )


def _various(ranked: Sequence[Probe]) -> list[Probe]:
    """The first `COUNT`, every language alike, and none that writes what another writes."""
    by_language: dict[int, list[Probe]] = {}
    written: set[tuple[int, ...]] = set()
    for probe in ranked:
        if probe.tokens not in written:
            written.add(probe.tokens)
            by_language.setdefault(probe.source[0], []).append(probe)
    turns = [group[turn] for turn in range(COUNT) for group in by_language.values() if turn < len(group)]
    return turns[:COUNT]


def _repeated(source: list[int], tokens: int) -> list[int]:
    """``source`` said again and again, until there are so many ``tokens``."""
    first, *words, last = source
    while len(words) + 2 < tokens:
        words += source[1:-1] or [END]
    return [first, *words[: tokens - 2], last]


def _probes(stepper: Stepper, sources: Sequence[list[int]], limit: int, tolerance: Tolerance) -> list[Probe]:
    """The probes that ``sources`` make, in their order; those are left out whose first step is not sure."""
    probes = []
    for begin in range(0, len(sources), ROWS):
        part = sources[begin : begin + ROWS]
        for source, run in zip(part, _greedy(stepper, part, limit), strict=True):
            if count := run.sure(tolerance.margin):
                probes.append(_probe(source, run, count))
    return probes


def _notices(stepper: Stepper, probe: Probe, tolerance: Tolerance) -> int:
    """Whether ``probe`` has clearly other probabilities where the decoder sees a key of the source less (1), and where
    it sees one more as well (2); else 0."""
    tokens = list(probe.tokens)
    for noticed, seen in enumerate((-1, 1)):
        [run] = _greedy(stepper, [list(probe.source)], len(tokens), seen, [tokens])
        if abs(_mean(run.log_probabilities) - probe.mean_log_probability) < NOTICED * tolerance.mean_log_probability:
            return noticed
    return 2


def _probe(source: list[int], run: Run, count: int) -> Probe:
    return Probe(
        source=tuple(source),
        tokens=tuple(run.tokens[:count]),
        margin=_floor(min(run.margins[:count])),
        mean_log_probability=round(_mean(run.log_probabilities[:count]), 5),
        last_log_probability=round(_mean(run.log_probabilities[:count][-LAST:]), 5),
    )


def _mean(log_probabilities: Sequence[float]) -> float:
    return float(np.mean(log_probabilities))


def _floor(value: float) -> float:
    """Two decimals, rounded down."""
    return float(np.floor(value * 100) / 100)


def _greedy(
    stepper: Stepper,
    sources: Sequence[list[int]],
    limit: int,
    seen: int = 0,
    given: Sequence[list[int]] | None = None,
) -> list[Run]:
    """Greedy search for ``sources``, or the log-probabilities of what is ``given``.

    The decoder sees so many keys of a source as it has tokens, and ``seen`` more.
    """
    rows = len(sources)
    lengths = np.array([len(source) for source in sources])
    stepper.encode(pad([list(source) for source in sources]).astype(np.int64), lengths)
    stepper.lengths = np.maximum(stepper.lengths + seen, 1).astype(np.int32)
    runs = [Run([], [], []) for _ in sources]
    token, over = np.full(rows, START), np.zeros(rows, bool)
    for position in range(limit):
        likely = stepper.step(token, position)
        best = np.argsort(-likely, axis=1, kind="stable")[:, :2]
        for row in np.flatnonzero(~over).tolist():
            first, second = best[row].tolist()
            chosen = first if given is None else given[row][position]
            runs[row].tokens.append(chosen)
            runs[row].log_probabilities.append(float(likely[row, chosen]))
            runs[row].margins.append(float(likely[row, first] - likely[row, second]))
            token[row] = chosen
            over[row] = chosen == END or (given is not None and position + 1 == len(given[row]))
        if over.all():
            break
    return runs
