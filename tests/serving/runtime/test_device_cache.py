"""Sources that wait for their rows, and rows that are copied and freed meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.exporter import Precision
from model.tokenizer import END
from serving.runtime.batch import CacheCopy
from serving.runtime.device_cache import DeviceCache
from tests.serving.runtime.fake_device import FakeDevice, device_runtime

SOURCES = [[4, 9, END], [4, 8, 9, 10, END], [4, 11, 12, 13, 14, 15, END]]


class Rig:
    def __init__(self, bundle: Path) -> None:
        self.device = FakeDevice()
        runtime = device_runtime(bundle, self.device)
        self.encoded: list[Any] = list(runtime.encode([SOURCES, SOURCES[::-1]]))
        cache = runtime.batch(5)._cache
        assert isinstance(cache, DeviceCache)
        self.cache = cache

    def values(self, name: str) -> Any:
        return self.device.download(self.cache.arrays[name])

    def holds(self, row: int, batch: int, index: int) -> bool:
        """Whether ``row`` has a source's keys and values, and its last ones once more."""
        length = len((SOURCES, SOURCES[::-1])[batch][index])
        for name, source in self.encoded[batch].caches.items():
            expected = self.device.download(source)[index, :, :length]
            last = self.values(name.replace("cross", "last"))[row, 0]
            same = np.array_equal(self.values(name)[row, :, :length], expected)
            if not (same and np.array_equal(last, expected[:, -1].reshape(-1))):
                return False
        return True

    def store(self, row: int, batch: int, index: int) -> None:
        self.cache.store(row, self.encoded[batch], index, len((SOURCES, SOURCES[::-1])[batch][index]))


@pytest.fixture
def rig(lively_bundle: Callable[[Precision], Path]) -> Rig:
    return Rig(lively_bundle("fp32"))


def test_sources_of_several_batches_come_into_their_rows_at_once(rig: Rig) -> None:
    for row, batch, index in ((0, 0, 2), (3, 1, 1), (1, 0, 0)):
        rig.store(row, batch, index)
    runs = rig.device.runs
    rig.cache.settle()
    assert rig.device.runs == runs + 2, "one run a batch"
    assert rig.holds(0, 0, 2)
    assert rig.holds(3, 1, 1)
    assert rig.holds(1, 0, 0)
    assert not rig.values("cross_key_0")[[2, 4]].any()
    rig.cache.settle()
    assert rig.device.runs == runs + 2


def test_who_has_left_before_is_not_put_there_and_who_came_after_is(rig: Rig) -> None:
    rig.store(2, 0, 0)
    rig.cache.forget(2)
    rig.store(4, 0, 0)
    rig.cache.forget(4)
    rig.store(4, 0, 1)
    rig.cache.settle()
    assert not rig.values("cross_key_0")[2].any()
    assert rig.holds(4, 0, 1)


def test_what_waits_is_there_before_rows_are_copied(rig: Rig) -> None:
    rig.store(4, 0, 1)
    rig.store(0, 0, 2)
    rig.cache.copy([CacheCopy(4, 1, written=0, read=5)])
    assert rig.holds(1, 0, 1)
    assert rig.holds(4, 0, 1)
    assert rig.holds(0, 0, 2)


def test_a_step_takes_only_small_arrays_to_the_device_and_back(lively_bundle: Callable[[Precision], Path]) -> None:
    device = FakeDevice()
    runtime = device_runtime(lively_bundle("fp32"), device)
    batch = runtime.batch(5)
    [encoded] = runtime.encode([SOURCES])
    assert not isinstance(encoded, Exception)
    for index, source in enumerate(SOURCES):
        batch.admit(encoded, index, len(source), limit=9)
    batch.step([])
    device.moved = 0
    batch.step([])
    # Of five rows, those in use and the others: token, position, length and given token; two tokens with their
    # probabilities, and the given one's.
    assert device.moved == 5 * (8 + 4 + 4 + 8) + 5 * (2 * 8 + 2 * 4 + 4)
