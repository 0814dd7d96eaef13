"""How a step spends its threads: which of three strategies is the fastest is measured, and measured again.

Which one it is depends on the processor, the model, the number of rows and whatever else wants the cores, and so it
changes while a service runs. No row's numbers depend on it, so a step can be spent on trying another one.
"""

import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Strategy = Literal["single", "shared", "lanes"]
"""single: the calling thread alone. shared: all threads divide each product among them and meet after every node.
lanes: each thread takes rows of its own through the whole graph, so that they meet once."""
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows: from each on to the next one, one choice holds."""
REMEMBERED = 5
"""The last so many trials of a strategy count, by their median. Three are needed for it to take over."""
BETTER = 0.97
"""Another strategy takes over when its median time is below this share of the chosen one's. Noise would let near-equals
change for ever."""
TRIAL_COST = 0.005
"""The share of all time that trials of one strategy may cost."""
MOST_OFTEN, LEAST_OFTEN = 16, 400
"""Steps between two trials of a strategy: as often as `TRIAL_COST` allows, and within these."""


@dataclass(eq=False)
class Bucket:
    """The choice for some numbers of rows."""

    chosen: Strategy
    steps: int = 0
    """Taken so far."""
    trials: dict[Strategy, deque[float]] = field(default_factory=dict)
    """Of the other strategies: a step's time over that of the steps around it, which the chosen one took."""
    due: dict[Strategy, int] = field(default_factory=dict)
    """The number of steps from which on another strategy may be tried again."""


class Step(NamedTuple):
    """A step that has been taken."""

    bucket: Bucket
    strategy: Strategy
    kind: Hashable
    seconds: float | None


class ThreadingStrategy:
    """Chooses for every step, and learns from how long it took."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._buckets = {least: Bucket("single") for least in BUCKETS}
        self._last: Step | None = None
        self._trial: tuple[Step, float] | None = None
        """A trial whose next step is still to come, and the seconds of the step before it."""

    def possible(self, rows: int) -> list[Strategy]:
        """The strategies for a step of ``rows`` rows."""
        if self._threads == 1:
            return ["single"]
        return ["single", "shared", "lanes"] if self._least(rows) >= self._threads else ["single", "shared"]

    def begin(self, rows: int, seconds: Mapping[Strategy, float]) -> None:
        """Choose for ``rows`` and more by the ``seconds`` that a step took with each strategy."""
        fastest = min(seconds, key=seconds.__getitem__)
        for bucket in (bucket for least, bucket in self._buckets.items() if least >= rows):
            self._choose(bucket, fastest)
            for strategy, taken in seconds.items():
                if strategy != fastest:
                    self._remember(bucket, strategy, taken / seconds[fastest])

    def choose(self, rows: int, kind: Hashable = None) -> Strategy:
        """The strategy for the next step, of ``rows`` rows. Only steps of one ``kind`` can be compared."""
        bucket, last = self._bucket(rows), self._last
        if last and (last.bucket, last.strategy, last.kind) == (bucket, bucket.chosen, kind) and last.seconds:
            for strategy in self.possible(rows):
                if strategy != bucket.chosen and bucket.steps >= bucket.due.get(strategy, 0):
                    # Or one that never gets a step after it to compare with would be tried at every other step.
                    bucket.due[strategy] = bucket.steps + MOST_OFTEN
                    return strategy
        return bucket.chosen

    def took(self, rows: int, strategy: Strategy, seconds: float | None, kind: Hashable = None) -> None:
        """Learn that a step took ``seconds`` with ``strategy``; None where that says nothing."""
        step = Step(self._bucket(rows), strategy, kind, seconds)
        step.bucket.steps += 1
        last, trial = self._last, self._trial
        self._last, self._trial = step, None
        if strategy != step.bucket.chosen:
            if seconds and last and last.seconds and (last.bucket, last.kind) == (step.bucket, kind):
                self._trial = step, last.seconds
        elif seconds and trial and (trial[0].bucket, trial[0].kind) == (step.bucket, kind):
            tried, before = trial
            assert tried.seconds
            self._remember(step.bucket, tried.strategy, 2 * tried.seconds / (before + seconds))

    def chosen(self, rows: int) -> Strategy:
        """What is thought fastest for ``rows``."""
        return self._bucket(rows).chosen

    @staticmethod
    def _least(rows: int) -> int:
        """The fewest rows that are chosen for as ``rows`` are."""
        return BUCKETS[bisect_right(BUCKETS, rows) - 1]

    def _bucket(self, rows: int) -> Bucket:
        return self._buckets[self._least(rows)]

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
