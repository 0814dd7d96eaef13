import numpy as np
import pytest

from serving.cache import KeyValueCache


def cache(limit: int = 20) -> KeyValueCache:
    return KeyValueCache(["self_key_0", "cross_key_0"], heads=2, head_width=4, capacity=6, limit=limit)


def test_growing_keeps_what_rows_hold_and_fills_the_rest_with_zeros() -> None:
    memory = cache()
    memory.reserve(1)
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    memory.store("cross_key_0", 0, values)
    memory.reserve(15)
    assert memory.rows >= 15
    np.testing.assert_array_equal(memory.arrays["cross_key_0"][0, :, :3], values)
    assert not memory.arrays["cross_key_0"][0, :, 3:].any()
    assert not memory.arrays["self_key_0"].any()


def test_memory_is_bounded_by_the_limit_and_not_grown_without_need() -> None:
    memory = cache(limit=9)
    memory.reserve(3)
    before = memory.arrays["self_key_0"]
    memory.reserve(2)
    assert memory.arrays["self_key_0"] is before
    memory.reserve(9)
    assert memory.rows == 9
    with pytest.raises(ValueError, match="limit of 9"):
        memory.reserve(10)


def test_moving_a_row_copies_its_valid_positions() -> None:
    memory = cache()
    memory.reserve(3)
    memory.arrays["self_key_0"][2] = 5
    memory.arrays["cross_key_0"][2] = 7
    memory.move(2, 0, {"self_key_0": 2, "cross_key_0": 6})
    assert (memory.arrays["self_key_0"][0, :, :2] == 5).all()
    assert not memory.arrays["self_key_0"][0, :, 2:].any()
    assert (memory.arrays["cross_key_0"][0] == 7).all()
