from pathlib import Path

import numpy as np
import pytest

from export.bundle import BundleError, read_manifest
from serving.runtime import Runtime, pad


def test_padding_rounds_up_and_keeps_the_tokens() -> None:
    padded, lengths = pad([[5, 6, 7], [8] * 9])
    assert padded.shape == (2, 16)
    assert lengths.tolist() == [3, 9]
    assert padded[0].tolist() == [5, 6, 7] + [0] * 13


def test_a_device_that_is_not_there_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no CUDAExecutionProvider"):
        Runtime(tiny_bundle, read_manifest(tiny_bundle), 1, "cuda")


def test_the_k_best_are_best_first_and_log_probabilities(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    runtime = Runtime(tiny_bundle, manifest, 1)
    cache = runtime.cache(4)
    encoded = runtime.encode([[4, 9, 3], [4, 9, 9, 9, 3]])
    cache.reserve(2)
    for name, values in encoded.caches.items():
        for row in range(2):
            cache.store(name, row, values[row])
    lengths = np.array([3, 5], np.int32)
    tokens, likely = runtime.step(cache, np.array([2, 2]), np.zeros(2, np.int32), lengths, k=manifest.model.vocabulary)
    assert (np.diff(likely, axis=1) <= 0).all()
    np.testing.assert_allclose(np.exp(likely).sum(axis=1), 1, atol=1e-4)
    assert sorted(tokens[0].tolist()) == list(range(manifest.model.vocabulary))
