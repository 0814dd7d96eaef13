"""The cache against plain lists: room comes and goes, what the rows hold stays."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from serving.cache import KeyValueCache, depth

Array = NDArray[Any]
HEADS, HEAD_WIDTH, LAYERS = 2, 4, 2
NAMES = [
    f"{kind}_{part}_{layer}"
    for layer in range(LAYERS)
    for kind in ("self", "cross", "last")
    for part in ("key", "value")
]
"""In the order of a decoder's inputs: kinds mixed."""
SELF, CROSS = ([name for name in NAMES if name.startswith(kind)] for kind in ("self", "cross"))


DTYPES = ("float32", "int8")

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def cache(limit: int = 20, dtype: str = "float32") -> KeyValueCache:
    return KeyValueCache(NAMES, HEADS, HEAD_WIDTH, limit, dtype)


def numbers(random: np.random.Generator, dtype: str, *shape: int) -> Array:
    return random.integers(-128, 128, shape, np.int8) if dtype == "int8" else random.random(shape, np.float32)


def encoded(seed: int, dtype: str, batch: int, length: int) -> dict[str, Array]:
    """What an encoder gives: ``cross_key_0`` …"""
    random = np.random.default_rng(seed)
    return {name: numbers(random, dtype, batch, HEADS, length, HEAD_WIDTH) for name in CROSS}


def test_a_depth_holds_its_positions_is_an_odd_multiple_of_8_and_not_much_more() -> None:
    depths = [depth(positions) for positions in range(3000)]
    assert all(positions <= found for positions, found in enumerate(depths))
    assert all(found % 16 == 8 for found in depths)
    assert depths == sorted(depths)
    steps = sorted(set(depths))
    assert steps[:5] == [24, 40, 56, 88, 136]
    assert all(1.3 < after / before < 1.7 for before, after in itertools.pairwise(steps))


@every_dtype
def test_room_appears_as_zeros(dtype: str) -> None:
    memory = cache(dtype=dtype)
    memory.grow(3)
    memory.deepen(0, 30, 50)
    assert set(memory.arrays) == set(NAMES)
    assert {array.dtype for array in memory.arrays.values()} == {np.dtype(dtype)}
    assert not any(array.any() for array in memory.arrays.values())
    assert memory.arrays["self_key_1"].shape == (memory.rows, HEADS, 40, HEAD_WIDTH)
    assert memory.arrays["cross_value_0"].shape == (memory.rows, HEADS, 56, HEAD_WIDTH)
    assert memory.arrays["last_value_1"].shape == (memory.rows, 1, HEADS * HEAD_WIDTH)


@every_dtype
def test_a_source_is_stored_with_its_last_key_and_value_once_more(dtype: str) -> None:
    memory, caches = cache(dtype=dtype), encoded(0, dtype, batch=3, length=16)
    memory.grow(2)
    memory.store(1, caches, index=2, length=13)
    for name, values in caches.items():
        np.testing.assert_array_equal(memory.arrays[name][1, :, :13], values[2, :, :13])
        last = memory.arrays[name.replace("cross", "last")]
        assert last[1, 0].tolist() == values[2, :, 12].ravel().tolist()
        assert not last[0].any()
        assert not memory.arrays[name][0].any()
        assert not memory.arrays[name][1, :, 13:].any()


def test_more_rows_than_the_limit_are_refused_and_the_last_step_of_growth_stops_there() -> None:
    memory = cache(limit=9)
    memory.grow(1)
    assert 1 <= memory.rows < 9
    memory.grow(9)
    assert memory.rows == 9
    with pytest.raises(ValueError, match="10 rows are more than the limit of 9"):
        memory.grow(10)


def test_nothing_moves_without_need() -> None:
    memory = cache()
    memory.grow(3)
    memory.deepen(3, 10, 10)
    layout, before = memory.layout, dict(memory.arrays)
    memory.grow(2)
    memory.deepen(3, 20, 7)
    assert memory.layout == layout
    assert all(memory.arrays[name] is array for name, array in before.items())


def test_the_layout_changes_whenever_the_arrays_do() -> None:
    memory = cache()
    seen = {memory.layout}
    for change in (lambda: memory.grow(1), lambda: memory.deepen(1, 99, 1), lambda: memory.deepen(1, 99, 99)):
        before = dict(memory.arrays)
        change()
        assert any(memory.arrays[name] is not array for name, array in before.items())
        seen.add(memory.layout)
    assert len(seen) == 4


def test_memory_is_used_again_and_what_is_deep_is_given_up_for_what_is_shallow() -> None:
    memory = cache()
    memory.grow(20)
    memory.deepen(20, 130, 250)
    most = memory.bytes
    for written, read in itertools.product((1, 30, 60, 130), (9, 40, 250)):
        memory.deepen(20, written, read)
        assert memory.bytes == most
        assert memory.arrays["self_key_0"].base is not None
    memory.deepen(20, 1, 9)
    assert memory.arrays["self_key_0"].shape[2] == memory.arrays["cross_key_0"].shape[2] == 24


@every_dtype
def test_memory_is_no_more_than_its_rows_and_depths_need(dtype: str) -> None:
    memory = cache(dtype=dtype)
    memory.grow(20)
    memory.deepen(0, 100, 100)
    count = 20 * HEADS * HEAD_WIDTH * (4 * depth(100) + 4 * depth(100) + 4)
    assert (
        memory.bytes
        == {"float32": 4, "int8": 1}[dtype] * count
        == sum(array.nbytes for array in memory.arrays.values())
    )


@every_dtype
def test_copying_touches_nothing_but_the_positions_told(dtype: str) -> None:
    memory, random = cache(dtype=dtype), np.random.default_rng(0)
    memory.grow(3)
    for array in memory.arrays.values():
        array[:] = numbers(random, dtype, *array.shape)
    before = {name: array.copy() for name, array in memory.arrays.items()}
    memory.copy(2, 0, written=5, read=0)
    for name in SELF:
        before[name][0, :, :5] = before[name][2, :, :5]
    same(memory.arrays, before)
    memory.copy(1, 2, written=0, read=9)
    for name in CROSS:
        last = name.replace("cross", "last")
        before[name][2, :, :9], before[last][2] = before[name][1, :, :9], before[last][1]
    same(memory.arrays, before)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class Use(RuleBasedStateMachine):
    """The cache as an engine uses it, beside lists that hold the same: ``[name][row]`` to ``[heads, positions, d]``."""

    @initialize(limit=st.integers(1, 20), dtype=st.sampled_from(DTYPES))
    def begin(self, limit: int, dtype: str) -> None:
        self.memory, self.limit, self.dtype = cache(limit, dtype), limit, dtype
        self.rows: list[dict[str, Array]] = []
        self.random = np.random.default_rng(0)
        self.room: dict[str, int] = {}

    def written(self) -> int:
        return max((row["self_key_0"].shape[1] for row in self.rows), default=0)

    def read(self) -> int:
        return max((row["cross_key_0"].shape[1] for row in self.rows), default=0)

    def numbers(self, *shape: int) -> Array:
        return numbers(self.random, self.dtype, *shape)

    @precondition(lambda self: len(self.rows) < self.limit)
    @rule(lengths=st.lists(st.sampled_from([1, 5, 8, 24, 25, 60, 130, 260]), min_size=1, max_size=5))
    def join(self, lengths: Sequence[int]) -> None:
        lengths = lengths[: self.limit - len(self.rows)]
        self.memory.deepen(len(self.rows), self.written() + 1, max(*lengths, self.read(), 1))
        self.memory.grow(len(self.rows) + len(lengths))
        caches = {name: self.numbers(len(lengths), HEADS, max(lengths), HEAD_WIDTH) for name in CROSS}
        for index, length in enumerate(lengths):
            self.memory.store(len(self.rows), caches, index, length)
            row = {name: np.zeros((HEADS, 0, HEAD_WIDTH), self.dtype) for name in SELF}
            row |= {name: values[index, :, :length] for name, values in caches.items()}
            row |= {
                name.replace("cross", "last"): values[index, :, length - 1].reshape(1, -1)
                for name, values in caches.items()
            }
            self.rows.append(row)

    @precondition(lambda self: self.rows)
    @rule(steps=st.sampled_from([1, 2, 7, 30]))
    def write(self, steps: int) -> None:
        """Each row at its own position."""
        self.memory.deepen(len(self.rows), self.written() + steps, self.read())
        for index, row in enumerate(self.rows):
            for name in SELF:
                begin, values = row[name].shape[1], self.numbers(HEADS, steps, HEAD_WIDTH)
                self.memory.arrays[name][index, :, begin : begin + steps] = values
                row[name] = np.concatenate([row[name], values], axis=1)

    @precondition(lambda self: 0 < len(self.rows) < self.limit)
    @rule(choice=st.integers(0, 99))
    def split(self, choice: int) -> None:
        """A beam grows into a new row."""
        origin = choice % len(self.rows)
        self.memory.grow(len(self.rows) + 1)
        self.copy(origin, len(self.rows), fresh=True)
        self.rows.append(dict(self.rows[origin]))

    @precondition(lambda self: len(self.rows) > 1)
    @rule(choice=st.integers(0, 999))
    def replace(self, choice: int) -> None:
        """A hypothesis goes on in the row of another; they share their source."""
        origin, row = choice % len(self.rows), choice // 7 % len(self.rows)
        source = {name: array for name, array in self.rows[origin].items() if name not in SELF}
        if origin != row and all(self.rows[row][name] is array for name, array in source.items()):
            self.copy(origin, row, fresh=False)
            self.rows[row] = dict(self.rows[origin])

    @precondition(lambda self: self.rows)
    @rule(choice=st.integers(0, 99))
    def leave(self, choice: int) -> None:
        row, last = choice % len(self.rows), len(self.rows) - 1
        if row != last:
            self.copy(last, row, fresh=True)
            self.rows[row] = self.rows[last]
        self.rows.pop()

    def copy(self, origin: int, row: int, fresh: bool) -> None:
        written, read = (self.rows[origin][name].shape[1] for name in ("self_key_0", "cross_key_0"))
        self.memory.copy(origin, row, written, read if fresh else 0)

    @invariant()
    def rows_hold_what_was_put_into_them(self) -> None:
        for index, row in enumerate(self.rows):
            for name, values in row.items():
                assert np.array_equal(
                    self.memory.arrays[name][index][:, : values.shape[1]].reshape(values.shape), values
                )

    @invariant()
    def arrays_can_be_bound_and_are_finite(self) -> None:
        for array in self.memory.arrays.values():
            assert array.dtype == self.dtype
            assert array.flags.c_contiguous
            assert len(array) == self.memory.rows <= self.limit
            assert np.isfinite(array).all()

    @invariant()
    def memory_is_the_most_there_ever_was_room_for(self) -> None:
        for kind in ("self", "cross", "last"):
            now = sum(array.nbytes for name, array in self.memory.arrays.items() if name.startswith(kind))
            self.room[kind] = max(self.room.get(kind, 0), now)
        assert self.memory.bytes == sum(self.room.values())


TestUse = Use.TestCase
TestUse.settings = settings(max_examples=40, stateful_step_count=25)
