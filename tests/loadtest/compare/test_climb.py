"""The search for a rate, against services whose p99 is a formula."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.compare.climb import LOWEST, MOST, PRECISION, STEP_DOWN, STEP_UP, following, highest


def climb(p99: Callable[[float], float], limit: float, first: float) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    extend(found, p99, limit, first)
    return found


def extend(found: dict[float, list[float]], p99: Callable[[float], float], limit: float, first: float) -> None:
    while (rate := following(found, limit, first)) is not None:
        found.setdefault(rate, []).append(p99(rate))
        assert len(found[rate]) <= 2
        assert len(found) < 60


@given(first=st.floats(1, 500), over_first=st.floats(LOWEST * STEP_DOWN, 50), slow=st.floats(1.0, 9.0))
def test_the_highest_rate_that_holds_is_found_to_a_tenth(first: float, over_first: float, slow: float) -> None:
    capacity = min(over_first * first, MOST / STEP_UP)
    found = climb(lambda rate: 0.1 if rate < capacity else slow, 1.0, first)
    best = highest(found, 1.0)
    assert best is not None
    assert capacity / PRECISION <= best < capacity


def test_a_service_that_never_holds_or_always_does_ends_the_search() -> None:
    never = climb(lambda rate: 9.0, 1.0, 4.0)
    assert highest(never, 1.0) is None
    assert min(never) == 4.0 * LOWEST
    best = highest(climb(lambda rate: 0.01, 1.0, 4.0), 1.0)
    assert best is not None
    assert MOST / 2 < best <= MOST


def test_a_rate_that_fails_is_tried_again_and_its_best_counts() -> None:
    tries = itertools.count()
    disturbed = climb(lambda rate: 1.9 if next(tries) % 2 == 0 else 0.1 if rate < 20 else 1.9, 1.0, 8.0)
    best = highest(disturbed, 1.0)
    assert best is not None
    assert 20 / PRECISION <= best < 20


def test_a_rate_that_fails_clearly_is_not_tried_again() -> None:
    assert {len(each) for each in climb(lambda rate: 0.1 if rate < 20 else 2.0, 1.0, 8.0).values()} == {1}


def test_a_rate_above_one_that_failed_does_not_count() -> None:
    assert highest({1.0: [0.1], 2.0: [0.2], 3.0: [1.0], 4.0: [0.3]}, 1.0) == 2.0
    assert highest({1.0: [1.0], 2.0: [0.2]}, 1.0) is None
    assert highest({1.0: [1.0, 0.9], 2.0: [0.2]}, 1.0) == 2.0
    assert highest({}, 1.0) is None


@pytest.mark.parametrize("limits", [(1.0, 0.25), (0.25, 1.0)])
def test_what_was_measured_for_one_limit_serves_the_other(limits: tuple[float, float]) -> None:
    def p99(rate: float) -> float:
        return 0.05 / (1 - rate / 50) if rate < 50 else 30.0

    found: dict[float, list[float]] = {}
    for limit in limits:
        extend(found, p99, limit, 4.0)
    alone = sum(len(climb(p99, limit, 4.0)) for limit in limits)
    assert len(found) < alone
    for limit, capacity in ((1.0, 47.5), (0.25, 40.0)):
        best = highest(found, limit)
        assert best is not None
        assert capacity / PRECISION <= best < capacity
