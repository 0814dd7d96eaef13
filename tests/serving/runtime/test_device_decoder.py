"""Tokens that are equally likely, which a GPU finds in any order."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.runtime.device_decoder import order_ties


@given(st.integers(0, 5), st.integers(1, 9), st.randoms(use_true_random=False))
def test_of_two_that_are_equally_likely_the_lesser_comes_first(rows: int, k: int, order: random.Random) -> None:
    found = [[(float(order.randrange(-3, 1)), token) for token in order.sample(range(50), k)] for _ in range(rows)]
    given_ = [sorted(row, key=lambda pair: -pair[0]) for row in found]
    tokens = np.array([[token for _, token in row] for row in given_], np.int64).reshape(rows, k)
    likely = np.array([[value for value, _ in row] for row in given_], np.float32).reshape(rows, k)
    before = likely.copy()
    order_ties(tokens, likely)
    assert tokens.tolist() == [
        [token for _, token in sorted(row, key=lambda pair: (-pair[0], pair[1]))] for row in found
    ]
    assert (likely == before).all()
