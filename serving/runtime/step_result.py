"""What is asked of a decoding step, and what it finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.runtime.rows import Slot

Array = NDArray[Any]


class Ask(NamedTuple):
    """What a search wants to know of a slot's next step."""

    slot: Slot
    k: int
    """So many of the likeliest tokens."""
    given: int | None = None
    """A token whose log-probability is wanted, however unlikely it is."""


class Candidates(NamedTuple):
    """The next tokens that one hypothesis may choose from."""

    tokens: list[int]
    """The likeliest, best first: as many as were asked for, or all there are. Of two that are equally likely the lesser
    id comes first; on a GPU, of those that it finds."""
    log_probabilities: list[float]
    given: float
    """The log-probability of the token that the `Ask` gave."""


class Written(NamedTuple):
    """What a greedy slot has written when it ends."""

    slot: Slot
    tokens: list[int]
    log_probabilities: list[float]


class StepArrays(NamedTuple):
    """What the decoder graph gives for its rows; overwritten by the next step."""

    tokens: Array
    """``[rows, k]`` int64: the k likeliest next tokens, as in `Candidates`."""
    log_probabilities: Array
    """``[rows, k]`` fp32: theirs."""
    given: Array
    """``[rows]`` fp32: the log-probability of each row's given token."""
    log_softmax: Array | None
    """``[rows, vocabulary]`` fp32: the log-probabilities of all tokens, where they were asked for."""


@dataclass(frozen=True)
class StepResult:
    """What one step found. Valid until the next one."""

    arrays: StepArrays
    ended: Sequence[Written]
    """The greedy slots that ended in this step."""

    def candidates(self, ask: Ask) -> Candidates:
        """What was asked for."""
        arrays, row = self.arrays, ask.slot.row
        given = float(arrays.given[row])
        if arrays.log_softmax is None or ask.k <= arrays.tokens.shape[1]:
            tokens, likely = arrays.tokens[row, : ask.k], arrays.log_probabilities[row, : ask.k]
            return Candidates(tokens.tolist(), likely.tolist(), given)
        return Candidates(*k_best(arrays.log_softmax[row], ask.k), given)


def k_best(log_probabilities: Array, k: int) -> tuple[list[int], list[float]]:
    """The ``k`` likeliest tokens of ``log_probabilities`` ``[vocabulary]``, or all, as the graph's TopK gives them."""
    k = min(k, len(log_probabilities))
    least = np.partition(log_probabilities, -k)[-k]
    tokens = np.flatnonzero(log_probabilities >= least)
    best = tokens[np.argsort(-log_probabilities[tokens], kind="stable")[:k]]
    return best.tolist(), log_probabilities[best].tolist()
