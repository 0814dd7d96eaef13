"""What a decoding step found: the best tokens of every row."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Found(NamedTuple):
    """What a step found for its rows; overwritten by the next one."""

    tokens: Array
    """``[rows, k]`` int64: the k best next tokens, best first; of two that are equally likely the lesser id."""
    log_probabilities: Array
    """``[rows, k]`` fp32: theirs."""
    given: Array
    """``[rows]`` fp32: the log-probability of each row's given token."""
    log_softmax: Array | None
    """``[rows, vocabulary]`` fp32: the log-probabilities of all tokens, where they were asked for."""

    def best(self, row: int, k: int) -> tuple[list[int], list[float]]:
        """The ``k`` best tokens of ``row``, or more, or all there are, and their log-probabilities."""
        if self.log_softmax is None or k <= self.tokens.shape[1]:
            return self.tokens[row].tolist(), self.log_probabilities[row].tolist()
        return k_best(self.log_softmax[row], k)


def k_best(log_probabilities: Array, k: int) -> tuple[list[int], list[float]]:
    """The ``k`` best of ``log_probabilities`` ``[vocabulary]``, or all, as the graph's TopK would give them."""
    k = min(k, len(log_probabilities))
    least = np.partition(log_probabilities, -k)[-k]
    tokens = np.flatnonzero(log_probabilities >= least)
    best = tokens[np.argsort(-log_probabilities[tokens], kind="stable")[:k]]
    return best.tolist(), log_probabilities[best].tolist()
