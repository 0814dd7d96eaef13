"""The search for a rate, against services whose p99 is a formula."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.compare.climb import LEAST, MOST, PRECISION, STEP, following, highest


def climb(p99: Callable[[float], float], limit: float, first: float) -> dict[float, float]:
    found: dict[float, float] = {}
    while (rate := following(found, limit, first)) is not None:
        assert rate not in found
        found[rate] = p99(rate)
        assert len(found) < 60
    return found


@given(capacity=st.floats(LEAST * STEP, 2000), first=st.floats(LEAST / 2, 500))
def test_the_highest_rate_that_holds_is_found_to_a_tenth(capacity: float, first: float) -> None:
    found = climb(lambda rate: 0.1 if rate < capacity else 5.0, 1.0, first)
    best = highest(found, 1.0)
    assert best is not None
    assert capacity / PRECISION <= best < capacity


def test_a_service_that_never_holds_or_always_does_ends_the_search() -> None:
    assert highest(climb(lambda rate: 9.0, 1.0, 4.0), 1.0) is None
    assert min(climb(lambda rate: 9.0, 1.0, 4.0)) >= LEAST
    best = highest(climb(lambda rate: 0.01, 1.0, 4.0), 1.0)
    assert best is not None
    assert MOST / 2 < best <= MOST


def test_a_rate_above_one_that_failed_does_not_count() -> None:
    assert highest({1.0: 0.1, 2.0: 0.2, 3.0: 1.0, 4.0: 0.3}, 1.0) == 2.0
    assert highest({1.0: 1.0, 2.0: 0.2}, 1.0) is None
    assert highest({}, 1.0) is None


@pytest.mark.parametrize("limits", [(1.0, 0.25), (0.25, 1.0)])
def test_what_was_measured_for_one_limit_serves_the_other(limits: tuple[float, float]) -> None:
    def p99(rate: float) -> float:
        return 0.05 / (1 - rate / 50) if rate < 50 else 30.0

    found: dict[float, float] = {}
    for limit in limits:
        while (rate := following(found, limit, 4.0)) is not None:
            found[rate] = p99(rate)
    alone = sum(len(climb(p99, limit, 4.0)) for limit in limits)
    assert len(found) < alone
    for limit, capacity in ((1.0, 47.5), (0.25, 40.0)):
        best = highest(found, limit)
        assert best is not None
        assert capacity / PRECISION <= best < capacity
