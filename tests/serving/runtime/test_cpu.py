from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.bundle import read_manifest
from export.exporter import Precision
from model.tokenizer import END
from serving.runtime.cpu import CpuRuntime
from serving.runtime.padding import pad
from tests.serving.runtime.batches import SOURCES


def test_padding_rounds_up_and_keeps_the_tokens() -> None:
    padded, lengths = pad([[5, 6, 7], [8] * 9])
    assert padded.shape == (2, 16)
    assert lengths.tolist() == [3, 9]
    assert padded[0].tolist() == [5, 6, 7] + [0] * 13


@pytest.mark.parametrize("batches", range(6))
def test_batches_are_encoded_in_their_order_by_any_number_of_threads(
    lively_bundle: Callable[[Precision], Path], batches: int
) -> None:
    bundle = lively_bundle("int8")
    one, several = (CpuRuntime(bundle, read_manifest(bundle), threads) for threads in (1, 2))
    asked = [[[4, *range(20 + batch, 30 + 3 * batch), END], [4, 9, END]] for batch in range(batches)]
    expected = [next(one.encode([batch])) for batch in asked]
    found = list(several.encode(asked))
    assert len(found) == batches
    for each, alone in zip(found, expected, strict=True):
        assert np.array_equal(each.states, alone.states)
        assert all(np.array_equal(array, alone.caches[name]) for name, array in each.caches.items())


def test_a_batch_that_cannot_be_encoded_is_no_matter_to_the_others(lively_bundle: Callable[[Precision], Path]) -> None:
    bundle = lively_bundle("int8")
    runtime = CpuRuntime(bundle, read_manifest(bundle), 2)
    [expected] = runtime.encode([SOURCES])
    bad = [[4, 10**6, END]]
    for batches in ([SOURCES, bad], [bad, SOURCES], [bad], [bad, bad, SOURCES]):
        for batch, found in zip(batches, runtime.encode(batches), strict=True):
            if batch is bad:
                assert isinstance(found, Exception)
                assert "out of" in str(found)
            else:
                assert np.array_equal(found.states, expected.states)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_source_gets_the_same_bits_alone_and_among_others(
    lively_bundle: Callable[[Precision], Path], precision: Precision
) -> None:
    bundle = lively_bundle(precision)
    runtime = CpuRuntime(bundle, read_manifest(bundle), 1)
    [together] = runtime.encode([SOURCES])
    for row, source in enumerate(SOURCES):
        [alone] = runtime.encode([[source]])
        assert np.array_equal(alone.memory(0, len(source)), together.memory(row, len(source)))
        for name, array in alone.caches.items():
            assert np.array_equal(array[0, :, : len(source)], together.caches[name][row, :, : len(source)])
