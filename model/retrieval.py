"""How well sentence vectors of two languages fit: whether a sentence's nearest vector is that of its translation."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Sentences that are compared with all of the other language at one time."""


class WrongNearest(NamedTuple):
    """Shares of sentences whose nearest vector in the other language is not their translation's."""

    forth: float
    """From the first language to the second."""
    back: float

    @property
    def mean(self) -> float:
        """Of both ways."""
        return (self.forth + self.back) / 2


def wrong_nearest(first: NDArray[Any], second: NDArray[Any]) -> WrongNearest:
    """Compare ``first`` and ``second`` ``[pairs, width]``, vectors of length 1 of sentences and of their translations.

    Every sentence of one language is looked up among all of the other. If several vectors are equally near, the
    first counts. So of two identical pairs, one counts as wrong.
    """
    pairs = len(first)
    nearest_to_first = np.empty(pairs, np.int64)
    nearest_to_second, cosines = np.zeros(pairs, np.int64), np.full(pairs, -np.inf)
    for begin in range(0, pairs, BLOCK):
        block = first[begin : begin + BLOCK].astype(np.float64) @ second.astype(np.float64).T
        nearest_to_first[begin : begin + BLOCK] = block.argmax(axis=1)
        nearer = block.max(axis=0) > cosines
        nearest_to_second[nearer] = begin + block.argmax(axis=0)[nearer]
        cosines = np.maximum(cosines, block.max(axis=0))
    places = np.arange(pairs)
    return WrongNearest(float((nearest_to_first != places).mean()), float((nearest_to_second != places).mean()))
