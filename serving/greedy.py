"""Greedy search for all rows of a step at once, as arrays: what most requests ask for.

`serving.search.Single` is the same, a row at a time, and takes over where something is to be decided: a sample, a
prefix, a rule, a listener.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import END

Array = NDArray[Any]


class GreedyRows:
    """What the rows that are searched greedily have written; the others are there too, and nobody asks for them."""

    def __init__(self, rows: int, positions: int) -> None:
        self._tokens = np.zeros((rows, positions), np.int32)
        self._log_probabilities = np.zeros((rows, positions), np.float32)
        self._limits = np.zeros(rows, np.int32)
        """Tokens at most; 0 for a row that is searched in another way."""
        self._every = np.arange(rows)

    def start(self, row: int, limit: int) -> None:
        """From now on ``row`` is searched greedily, for at most ``limit`` tokens; 0: in another way."""
        self._limits[row] = limit

    def write(self, positions: Array, tokens: Array, log_probabilities: Array) -> list[int]:
        """Take a step's best ``tokens`` ``[n]`` for the first n rows, each at its position; returns the rows that end.

        A row ends with the end token or at its limit.
        """
        rows = self._every[: len(tokens)]
        self._tokens[rows, positions] = tokens
        self._log_probabilities[rows, positions] = log_probabilities
        limits = self._limits[: len(tokens)]
        over = ((tokens == END) | (positions + 1 == limits)) & (limits > 0)
        ended: list[int] = over.nonzero()[0].tolist()
        return ended

    def written(self, row: int, count: int) -> tuple[list[int], list[float]]:
        """The first ``count`` tokens of ``row`` and their log-probabilities."""
        return self._tokens[row, :count].tolist(), self._log_probabilities[row, :count].tolist()

    def copy(self, origins: Sequence[int], rows: Sequence[int]) -> None:
        """Copy rows over others, all at once."""
        for array in (self._tokens, self._log_probabilities, self._limits):
            array[rows] = array[origins]
