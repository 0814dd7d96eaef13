"""The cache against plain lists: memory comes and goes, what the rows hold stays."""

import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from export.bundle import capacity
from serving.runtime.batch import CacheCopy
from serving.runtime.cache import SHALLOW, KeyValueCache
from serving.runtime.cpu import HostEncodedBatch

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


LONGEST = 260


def cache(rows: int = 20, dtype: str = "float32", head_width: int = HEAD_WIDTH) -> KeyValueCache:
    return KeyValueCache(NAMES, HEADS, head_width, rows, (LONGEST, LONGEST), dtype)


def numbers(random: np.random.Generator, dtype: str, *shape: int) -> Array:
    return random.integers(-128, 128, shape, np.int8) if dtype == "int8" else random.random(shape, np.float32)


def encoded(seed: int, dtype: str, batch: int, length: int) -> HostEncodedBatch:
    """What an encoder gives."""
    random = np.random.default_rng(seed)
    return given({name: numbers(random, dtype, batch, HEADS, length, HEAD_WIDTH) for name in CROSS})


def given(caches: dict[str, Array]) -> HostEncodedBatch:
    return HostEncodedBatch(np.zeros((1, 1, 1), np.float32), caches)


@pytest.mark.parametrize("positions", [1, 16, 255, 256, 257])
def test_the_capacity_holds_its_positions_and_is_odd(positions: int) -> None:
    assert capacity(positions) % 2 == 1
    assert positions <= capacity(positions) <= positions + 1


@every_dtype
def test_there_is_room_for_every_row_from_the_start_and_it_is_zeros(dtype: str) -> None:
    memory = KeyValueCache(NAMES, HEADS, HEAD_WIDTH, 3, (30, 50), dtype)
    assert set(memory.arrays) == set(NAMES)
    assert {array.dtype for array in memory.arrays.values()} == {np.dtype(dtype)}
    assert not any(array.any() for array in memory.arrays.values())
    assert memory.arrays["self_key_1"].shape == (3, HEADS, 31, HEAD_WIDTH)
    assert memory.arrays["cross_value_0"].shape == (3, HEADS, 51, HEAD_WIDTH)
    assert memory.arrays["last_value_1"].shape == (3, 1, HEADS * HEAD_WIDTH)
    assert all(array.flags.c_contiguous for array in memory.arrays.values())


@every_dtype
def test_a_source_is_stored_with_its_last_key_and_value_once_more(dtype: str) -> None:
    memory, sources = cache(dtype=dtype), encoded(0, dtype, batch=3, length=16)
    memory.store(1, sources, index=2, length=13)
    for name, values in sources.caches.items():
        np.testing.assert_array_equal(memory.arrays[name][1, :, :13], values[2, :, :13])
        last = memory.arrays[name.replace("cross", "last")]
        assert last[1, 0].tolist() == values[2, :, 12].ravel().tolist()
        assert not last[0].any()
        assert not memory.arrays[name][0].any()
        assert not memory.arrays[name][1, :, 13:].any()


def resident(memory: KeyValueCache) -> int:
    """Bytes of the caches that are in memory, as the system counts them."""
    found, inside = 0, False
    addresses = [array.ctypes.data for array in memory.arrays.values() if array.ndim == 4]
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(each, 16) for each in bounds.groups())
            inside = any(begin <= address < end for address in addresses)
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_memory_is_taken_as_rows_grow_and_given_back_when_a_long_one_is_done() -> None:
    memory = cache(rows=32, head_width=64)
    every = sum(array.nbytes for array in memory.arrays.values())
    begin = resident(memory)
    assert 0 < begin < every / 4
    narrow = encoded(0, "float32", batch=1, length=LONGEST)
    source = given({name: np.tile(array, 16) for name, array in narrow.caches.items()})
    for row in range(32):
        memory.store(row, source, 0, LONGEST if row % 2 else SHALLOW)
    for name in SELF:
        memory.arrays[name][::2, :, :SHALLOW] = 1
        memory.arrays[name][1::2] = 1
    memory.written(np.array([LONGEST if row % 2 else SHALLOW for row in range(32)]))
    full = resident(memory)
    assert full > every / 2
    assert memory.deep() == list(range(1, 32, 2))
    kept = {name: array[[0, 30, 31]].copy() for name, array in memory.arrays.items()}
    memory.give_back(memory.deep()[:-1], most=float("inf"))
    assert memory.deep() == [31]
    assert full - resident(memory) > 0.9 * 15 * memory.row_bytes
    for name, array in kept.items():
        assert np.array_equal(memory.arrays[name][[0, 30, 31]], array), "another row lost something"
    assert all(np.isfinite(array).all() for array in memory.arrays.values())


def test_no_more_is_given_back_at_once_than_told_but_always_a_row() -> None:
    memory = cache()
    memory.written(np.full(20, LONGEST))
    memory.give_back(memory.deep(), most=2.5 * memory.row_bytes)
    assert memory.deep() == list(range(2, 20))
    memory.give_back(memory.deep(), most=0)
    assert memory.deep() == list(range(3, 20))


@pytest.mark.parametrize(("dtype", "head_width"), [("int8", 32), ("int8", 64), ("float32", 32), ("float32", 64)])
def test_heads_come_to_new_pages_of_memory_at_different_steps(dtype: str, head_width: int) -> None:
    """Or the step at which all of them do would wait for the system."""
    memory = KeyValueCache(NAMES, 8, head_width, 16, (256, 256), dtype)
    array = memory.arrays["self_key_0"]
    position, head = array.strides[2], array.strides[1]
    new = [
        sum((begin + step * position) % mmap.PAGESIZE < position for begin in range(0, 16 * 8 * head, head))
        for step in range(1, 256)
    ]
    assert max(new) <= 2 * (sum(new) / len(new)) + 1


def test_nothing_ever_moves() -> None:
    """Whatever happens to the rows: a step that had to wait for others' memory to be copied would be late."""
    memory = cache()
    before = {name: (array.ctypes.data, array.shape, array.strides) for name, array in memory.arrays.items()}
    memory.store(7, encoded(0, "float32", batch=1, length=LONGEST), 0, LONGEST)
    memory.copy([CacheCopy(7, 19, LONGEST, LONGEST)])
    memory.written(np.full(20, LONGEST))
    memory.give_back(memory.deep())
    after = {name: (array.ctypes.data, array.shape, array.strides) for name, array in memory.arrays.items()}
    assert after == before


@every_dtype
def test_copying_touches_nothing_but_the_positions_told(dtype: str) -> None:
    memory, random = cache(3, dtype), np.random.default_rng(0)
    for array in memory.arrays.values():
        array[:] = numbers(random, dtype, *array.shape)
    before = {name: array.copy() for name, array in memory.arrays.items()}
    memory.copy([CacheCopy(2, 0, written=5, read=0)])
    for name in SELF:
        before[name][0, :, :5] = before[name][2, :, :5]
    same(memory.arrays, before)
    memory.copy([CacheCopy(1, 2, written=0, read=9)])
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

    def numbers(self, *shape: int) -> Array:
        return numbers(self.random, self.dtype, *shape)

    @precondition(lambda self: len(self.rows) < self.limit)
    @rule(lengths=st.lists(st.sampled_from([1, 5, 8, 24, 25, 60, 130, 260]), min_size=1, max_size=5))
    def join(self, lengths: Sequence[int]) -> None:
        lengths = lengths[: self.limit - len(self.rows)]
        caches = {name: self.numbers(len(lengths), HEADS, max(lengths), HEAD_WIDTH) for name in CROSS}
        for index, length in enumerate(lengths):
            self.memory.store(len(self.rows), given(caches), index, length)
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
        steps = min(steps, LONGEST - max(row["self_key_0"].shape[1] for row in self.rows))
        for index, row in enumerate(self.rows):
            for name in SELF:
                begin, values = row[name].shape[1], self.numbers(HEADS, steps, HEAD_WIDTH)
                self.memory.arrays[name][index, :, begin : begin + steps] = values
                row[name] = np.concatenate([row[name], values], axis=1)
        self.memory.written(np.array([row["self_key_0"].shape[1] for row in self.rows]))

    @rule(most=st.sampled_from([0, 10_000, 10**9]))
    def give_back(self, most: int) -> None:
        """What is not in use any more."""
        self.memory.give_back([row for row in self.memory.deep() if row >= len(self.rows)], most)

    @precondition(lambda self: 0 < len(self.rows) < self.limit)
    @rule(choice=st.integers(0, 99))
    def split(self, choice: int) -> None:
        """A beam grows into a new row."""
        origin = choice % len(self.rows)
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
        self.memory.copy([CacheCopy(origin, row, written, read if fresh else 0)])

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
            assert len(array) == self.memory.rows == self.limit
            assert np.isfinite(array).all()

    @invariant()
    def the_long_ones_are_known(self) -> None:
        for index, row in enumerate(self.rows):
            if max(row["self_key_0"].shape[1], row["cross_key_0"].shape[1]) > SHALLOW:
                assert index in self.memory.deep()


TestUse = Use.TestCase
TestUse.settings = settings(max_examples=40, stateful_step_count=25)
