"""How a step spends its threads: which of three strategies is the fastest is measured, and measured again.

Which one it is depends on the processor, the model, the number of rows and whatever else wants the cores, and so it
changes while a service runs. No row's numbers depend on it, so a step can be spent on trying another one.
"""

import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["single", "shared", "lanes"]
"""single: the calling thread alone. shared: all threads divide each product among them and meet after every node.
lanes: each thread takes rows of its own through the whole graph, so that they meet once."""
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows from which on another choice is made: within one, steps take about as long."""
REMEMBERED = 5
"""Trials of a strategy that count; the median of them does."""
BETTER = 0.97
"""What the median must be below for another strategy to take over. Noise would let near-equals change for ever."""
TRIAL_COST = 0.005
"""The share of all time that trials of one strategy may cost."""
MOST_OFTEN, LEAST_OFTEN = 16, 400
"""Steps between two trials of a strategy: as often as `TRIAL_COST` allows, and within these."""


@dataclass
class Bucket:
    """The choice for some numbers of rows."""

    chosen: Strategy
    steps: int = 0
    """Taken so far."""
    trials: dict[Strategy, deque[float]] = field(default_factory=dict)
    """Of the other strategies: a step's time over that of the steps around it, which the chosen one took."""
    due: dict[Strategy, int] = field(default_factory=dict)
    """The number of steps from which on another strategy may be tried again."""


class ThreadingStrategy:
    """Chooses for every step, and learns from how long it took."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._buckets = {least: Bucket("single") for least in BUCKETS}
        self._last: tuple[Bucket, Strategy, float] | None = None
        """The step before, if its bucket is known."""
        self._trial: tuple[Bucket, Strategy, float, float] | None = None
        """A trial whose next step is still to come: bucket, strategy, seconds, and those of the step before."""

    def possible(self, rows: int) -> list[Strategy]:
        """The strategies for a step of ``rows`` rows."""
        if self._threads == 1:
            return ["single"]
        return ["single", "shared", "lanes"] if rows >= self._threads else ["single", "shared"]

    def begin(self, rows: int, seconds: Mapping[Strategy, float]) -> None:
        """Choose for ``rows`` and more by the ``seconds`` that a step took with each strategy."""
        fastest = min(seconds, key=seconds.__getitem__)
        for bucket in (bucket for least, bucket in self._buckets.items() if least >= rows):
            self._choose(bucket, fastest)
            for strategy, taken in seconds.items():
                if strategy != fastest:
                    self._remember(bucket, strategy, taken / seconds[fastest])

    def choose(self, rows: int) -> Strategy:
        """The strategy for the next step, of ``rows`` rows."""
        bucket = self._bucket(rows)
        if self._last and self._last[0] is bucket and self._last[1] == bucket.chosen and not self._trial:
            for strategy in self.possible(rows):
                if strategy != bucket.chosen and bucket.steps >= bucket.due.get(strategy, 0):
                    return strategy
        return bucket.chosen

    def took(self, rows: int, strategy: Strategy, seconds: float) -> None:
        """Learn that a step of ``rows`` rows took ``seconds`` with ``strategy``."""
        bucket = self._bucket(rows)
        bucket.steps += 1
        trial, self._trial = self._trial, None
        if strategy == bucket.chosen:
            if trial and trial[0] is bucket:
                _, tried, taken, before = trial
                self._remember(bucket, tried, 2 * taken / (before + seconds))
        elif self._last and self._last[0] is bucket:
            self._trial = bucket, strategy, seconds, self._last[2]
        self._last = bucket, strategy, seconds

    def chosen(self, rows: int) -> Strategy:
        """What is thought fastest for ``rows``."""
        return self._bucket(rows).chosen

    def _bucket(self, rows: int) -> Bucket:
        return self._buckets[BUCKETS[bisect_right(BUCKETS, rows) - 1]]

    def _remember(self, bucket: Bucket, strategy: Strategy, ratio: float) -> None:
        trials = bucket.trials.setdefault(strategy, deque(maxlen=REMEMBERED))
        trials.append(ratio)
        median = statistics.median(trials)
        if median < BETTER and len(trials) > REMEMBERED // 2:
            self._choose(bucket, strategy)
            return
        every = min(max(MOST_OFTEN, round((median - 1) / TRIAL_COST)), LEAST_OFTEN)
        bucket.due[strategy] = bucket.steps + every

    @staticmethod
    def _choose(bucket: Bucket, strategy: Strategy) -> None:
        """Begin anew with another choice: what was measured is relative to the one before."""
        bucket.chosen = strategy
        bucket.trials, bucket.due = {}, {}
