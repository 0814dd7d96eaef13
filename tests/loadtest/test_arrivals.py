import itertools
import math

import pytest

from loadtest.arrivals import SHAPES, arrivals

every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_shape
def test_as_many_arrive_as_the_rate_says(shape: str) -> None:
    for seed in range(5):
        found = arrivals(shape, 50, 200, seed)
        assert abs(len(found) - 10_000) < 5 * math.sqrt(10_000)
        assert found == sorted(found)
        assert 0 <= found[0] < found[-1] < 200


@every_shape
def test_the_same_seed_gives_the_same_times_and_another_seed_others(shape: str) -> None:
    assert arrivals(shape, 5, 20, 1) == arrivals(shape, 5, 20, 1) != arrivals(shape, 5, 20, 2)


def test_steady_arrivals_know_nothing_of_each_other() -> None:
    """Gaps of a Poisson process: as long on average as they spread, and any number of them can be short."""
    found = arrivals("steady", 100, 200, 0)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.01, rel=0.05)
    assert spread == pytest.approx(mean, rel=0.05)


def test_shapes_are_what_they_are_called() -> None:
    def by_fifth(shape: str) -> list[int]:
        found = arrivals(shape, 100, 100, 0)
        return [sum(fifth * 20 <= time < (fifth + 1) * 20 for time in found) for fifth in range(5)]

    for count in by_fifth("steady"):
        assert count == pytest.approx(2000, rel=0.1)
    for count, share in zip(by_fifth("ramp"), (1, 3, 5, 7, 9), strict=True):
        assert count == pytest.approx(400 * share, rel=0.15)
    for count, share in zip(by_fifth("spike"), (0.5, 0.5, 3, 0.5, 0.5), strict=True):
        assert count == pytest.approx(2000 * share, rel=0.15)
