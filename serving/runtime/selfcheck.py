"""A replica proves itself: it translates the probes of its bundle, whose tokens are known, on its own hardware.

They run alone, side by side at different positions in rows that move, and as searches that fork and come back. A cache
that is not written, a row in a wrong place and a stale input all show in tokens or in probabilities.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from export.probes import LAST, Probe, Probes
from model.tokenizer import END, START, UNKNOWN
from serving.runtime.batch import SHARED_K
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import DecoderBatch, Runtime
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, Candidates

TOGETHER = 16
"""Probes that run side by side, where there are as many rows."""
ENCODED = 4
"""Probes that go through the encoder together."""
SHORT = 32
"""Tokens at most of a probe that runs alone and as a search too. A longer one takes long: it runs side by side only."""


WANTED = (SHARED_K + 1, 2, 8, 16, 4, 32)
"""Tokens that searches want of a step, in turns: more than it finds for all, as few as it always finds, and what beams
of 4, 8, 2 and 16 want. On a GPU each is a step of its own."""


class SelfCheckError(RuntimeError):
    """A replica that computes something else than its bundle means. It must not serve."""


class Proof(NamedTuple):
    """What was proven."""

    probes: int
    tokens: int
    """All that were written."""
    rows: int
    """The most that were decoded side by side."""
    seconds: float


def prove(runtime: Runtime, batch: DecoderBatch, probes: Probes) -> Proof:
    """Translate ``probes`` in ``batch``, which is not in use; SelfCheckError says in one line which came out wrong."""
    begin = time.monotonic()
    check = _Check(runtime, batch, probes.tolerance)
    try:
        check.everything(probes.probes)
    except SelfCheckError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SelfCheckError(f"the probes could not be translated: {reason}") from error
    return Proof(len(probes.probes), check.tokens, check.rows, time.monotonic() - begin)


def fill(runtime: Runtime, batch: DecoderBatch, tokens: int) -> None:
    """Encode as many source ``tokens`` as a turn may, and take a step with all rows: memory for that is there then."""
    longest = runtime.manifest.limits.source_tokens
    source = [START, *[UNKNOWN] * (longest - 2), END]
    [encoded] = runtime.encode([[source] * max(1, min(tokens, runtime.encoder_cost.batch_tokens) // longest)])
    if isinstance(encoded, Exception):
        raise encoded
    slots = [batch.admit(encoded, 0, longest, 0) for _ in range(batch.rows)]
    batch.step([])
    batch.release(slots)


class _Check:
    """Runs probes one way or another."""

    def __init__(self, runtime: Runtime, batch: DecoderBatch, tolerance: float) -> None:
        self._runtime, self._batch, self._tolerance = runtime, batch, tolerance
        self.tokens = self.rows = 0

    def everything(self, probes: Sequence[Probe]) -> None:
        """Run ``probes`` alone, side by side and as searches."""
        short = [probe for probe in probes if len(probe.tokens) <= SHORT] or probes
        for probe in short:
            self.side_by_side([probe], "alone")
        rows = min(self._batch.rows, TOGETHER)
        # Those that end at once would not be there when all have begun. The long ones come first.
        lasting = [probe for probe in probes if len(probe.tokens) > 2] or list(probes)
        lasting.sort(key=lambda probe: -len(probe.tokens))
        crowd = list(itertools.islice(itertools.cycle(lasting), max(rows, len(lasting))))
        for first in range(0, len(crowd), rows):
            self.side_by_side(crowd[first : first + rows], f"among {rows}")
        if self._batch.rows > 1:
            searches = zip(itertools.cycle(short), itertools.cycle(WANTED), strict=False)
            for probe, k in itertools.islice(searches, max(len(short), len(WANTED))):
                self.forked(probe, k)

    def side_by_side(self, probes: Sequence[Probe], how: str) -> None:
        """Greedy search for all of ``probes``: half of them begin a step later than the others."""
        waiting = self._encoded(probes)
        running: dict[Slot, Probe] = {}
        while True:
            for probe, encoded, index in itertools.islice(waiting, -(-len(probes) // 2)):
                running[self._batch.admit(encoded, index, len(probe.source), len(probe.tokens))] = probe
            if not running:
                return
            self.rows = max(self.rows, len(self._batch))
            for slot, tokens, log_probabilities in self._batch.step([]).ended:
                self._compare(running.pop(slot), tokens, log_probabilities, how)
                self._batch.release([slot])

    def forked(self, probe: Probe, k: int) -> None:
        """A search of two hypotheses, one of which follows the probe.

        At every other step the other one takes the second best token and goes astray. At the next it is replaced by a
        copy of the first. Then they exchange roles, so that each row holds what was copied over something else.
        """
        [(_, encoded, index)] = self._encoded([probe])
        slots = [self._batch.admit(encoded, index, len(probe.source), 0)]
        written: tuple[list[Candidates], list[Candidates]] = ([], [])
        leader, astray = 0, False
        for expected in probe.tokens:
            asks = [Ask(slot, k, expected) for slot in slots]
            step = self._batch.step(asks)
            first = step.candidates(asks[leader])
            written[leader].append(first)
            written[1 - leader].append(first if astray else step.candidates(asks[-1 - leader]))
            tokens, parents = [first.tokens[0]] * 2, [leader] * 2
            astray = not astray
            if astray:
                leader = 1 - leader if len(slots) > 1 else 0
                tokens[1 - leader] = first.tokens[1]
            [slots] = self._batch.reorder([Continuation(slots, parents, tokens)])
        self._batch.release(slots)
        for candidates in written:
            best = [(step.tokens[0], step.log_probabilities[0]) for step in candidates]
            self._compare(probe, [token for token, _ in best], [likely for _, likely in best], "in a search that forks")
            if any(step.given != step.log_probabilities[0] for step in candidates):
                raise SelfCheckError(f"{_named(probe)}: a token that is given is not as likely as the same when found")

    def _encoded(self, probes: Sequence[Probe]) -> Iterator[tuple[Probe, EncodedBatch, int]]:
        """``probes`` with where they stand in what the encoder gives, which has `ENCODED` at a time."""
        groups = [probes[begin : begin + ENCODED] for begin in range(0, len(probes), ENCODED)]
        results = self._runtime.encode([[list(probe.source) for probe in group] for group in groups])
        for group, encoded in zip(groups, results, strict=True):
            if isinstance(encoded, Exception):
                raise encoded
            for index, probe in enumerate(group):
                yield probe, encoded, index

    def _compare(self, probe: Probe, tokens: list[int], log_probabilities: list[float], how: str) -> None:
        self.tokens += len(tokens)
        if tuple(tokens) != probe.tokens:
            raise SelfCheckError(f"{_named(probe)} {how} gives other tokens: {_named_tokens(tokens)}")
        for part, expected in ((None, probe.mean_log_probability), (-LAST, probe.last_log_probability)):
            mean = float(np.mean(log_probabilities[part:]))
            # NaN is not within.
            if not abs(mean - expected) <= self._tolerance:
                raise SelfCheckError(
                    f"{_named(probe)} {how} has a mean log-probability of {mean:.4f}{' at its end' if part else ''}; "
                    f"it should be within {self._tolerance} of {expected:.4f}"
                )


def _named(probe: Probe) -> str:
    return f"the probe {_named_tokens(probe.source)}"


def _named_tokens(tokens: Sequence[int]) -> str:
    """The first of ``tokens``, enough to know them by."""
    return f"{' '.join(map(str, tokens[:6]))}{' …' if len(tokens) > 6 else ''} ({len(tokens)} tokens)"
