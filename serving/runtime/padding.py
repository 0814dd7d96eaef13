"""Sources side by side as the encoder takes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import PADDING

Array = NDArray[Any]
ALIGNMENT = 8
"""Source lengths are padded to a multiple of this; then a sentence's numbers do not depend on the padding."""


def pad(rows: list[list[int]]) -> tuple[Array, Array]:
    """``[len(rows), longest]`` int64, the longest rounded up to `ALIGNMENT`, and lengths ``[len(rows)]`` int32."""
    lengths = np.array([len(ids) for ids in rows], np.int32)
    padded = np.full((len(rows), -(-int(lengths.max()) // ALIGNMENT) * ALIGNMENT), PADDING, np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths
