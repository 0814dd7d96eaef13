"""What a step reads of each row besides its keys and values, and what greedy rows have written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import END, START

Array = NDArray[Any]

IDLE = {"token": START, "position": 0, "lengths": 1, "given": START}
"""What a step reads of a row that is not in use: the beginning of a translation of one token."""


class RowState:
    """Small arrays, a number or a list of tokens a row, in the host's memory.

    Greedy search for all rows at once is here too, since it is what most requests ask for.
    `serving.engine.search.Single` is the same, a row at a time, and takes over where something is to be decided: a
    sample, a prefix, a rule.
    """

    def __init__(self, rows: int, positions: int) -> None:
        """``positions``: the longest target."""
        self.inputs: dict[str, Array] = {
            "token": np.zeros(rows, np.int64),
            "position": np.zeros(rows, np.int32),
            "lengths": np.zeros(rows, np.int32),
            "given": np.zeros(rows, np.int64),
        }
        """By the decoder's input names, ``[rows]`` each, read in place: the token that is read next and its position,
        the number of the source's tokens, and a token whose log-probability is wanted."""
        self.token, self.position, self.lengths, self.given = self.inputs.values()
        self._limits = np.zeros(rows, np.int32)
        """The most tokens of a greedy row; 0 for a row that is searched in another way."""
        self._tokens = np.zeros((rows, positions), np.int32)
        self._log_probabilities = np.zeros((rows, positions), np.float32)
        self._numbers = np.arange(rows)

    def begin(self, row: int, length: int, limit: int) -> None:
        """A source of ``length`` tokens begins in ``row``, greedy with a ``limit``, in another way with 0."""
        self.token[row], self.position[row], self.lengths[row], self._limits[row] = START, 0, length, limit

    def idle(self, rows: Sequence[int]) -> None:
        """Nobody uses ``rows``, but the next step takes them too."""
        for name, value in IDLE.items():
            self.inputs[name][rows] = value
        self._limits[rows] = 0

    def advance(self, tokens: Array, log_probabilities: Array) -> list[int]:
        """Go on with a step's likeliest ``tokens`` ``[n]`` and their ``log_probabilities`` ``[n]`` in the first n rows.

        A search chooses others afterwards. Returns the greedy rows that end, with the end token or at their limit.
        """
        count = len(tokens)
        position, limits = self.position[:count], self._limits[:count]
        rows = self._numbers[:count]
        self._tokens[rows, position] = tokens
        self._log_probabilities[rows, position] = log_probabilities
        self.token[:count] = tokens
        position += 1
        over = ((tokens == END) | (position == limits)) & (limits > 0)
        ended: list[int] = over.nonzero()[0].tolist()
        return ended

    def written(self, row: int) -> tuple[list[int], list[float]]:
        """The tokens that the greedy ``row`` has written, and their log-probabilities."""
        count = int(self.position[row])
        return self._tokens[row, :count].tolist(), self._log_probabilities[row, :count].tolist()

    def copy(self, origins: Sequence[int], rows: Sequence[int]) -> None:
        """Copy rows over others, all at once."""
        for array in (*self.inputs.values(), self._limits, self._tokens, self._log_probabilities):
            array[rows] = array[origins]
