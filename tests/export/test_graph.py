import numpy as np

from export.graph import ALIGNMENT, Weights


def test_weights_with_equal_contents_share_a_place_unless_their_types_differ() -> None:
    weights = Weights()
    first = weights.place(np.arange(6, dtype=np.float32))
    assert weights.place(np.arange(6, dtype=np.float32)) == first
    assert weights.place(np.zeros(4, np.int8))[0] != weights.place(np.zeros(1, np.float32))[0]
    offset, length = weights.place(np.ones(2000, np.float32))
    assert (offset % ALIGNMENT, length) == (0, 8000)
