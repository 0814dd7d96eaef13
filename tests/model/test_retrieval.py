import numpy as np
import pytest

from model import retrieval
from model.retrieval import wrong_nearest


def test_each_way_is_counted_by_its_own() -> None:
    """Of three pairs on a circle, one sentence is nearest to another's translation, seen from one side only."""
    first = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    second = np.array([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    found = wrong_nearest(first, second)
    assert found == (0.0, 1 / 3)  # the first of the second language lies nearer to the second of the first
    assert found.mean == 1 / 6
    assert wrong_nearest(second, first) == (1 / 3, 0.0)


@pytest.mark.parametrize("block", [1, 7, 50, 64])
def test_blocks_of_any_size_find_what_one_matrix_does(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Ties too: some vectors are there twice, and the first of them counts."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    random = np.random.default_rng(5)
    first, second = random.normal(size=(50, 4)), random.normal(size=(50, 4))
    first[20:25], second[30:33] = first[10:15], second[3:6]
    cosines, places = first @ second.T, np.arange(50)
    expected = ((cosines.argmax(1) != places).mean(), (cosines.argmax(0) != places).mean())
    assert wrong_nearest(first, second) == expected


def test_pairs_that_point_the_same_way_are_never_wrong() -> None:
    vectors = np.random.default_rng(3).normal(size=(50, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert wrong_nearest(vectors, vectors) == (0.0, 0.0)
    assert wrong_nearest(vectors, np.roll(vectors, 1, axis=0)) == (1.0, 1.0)
