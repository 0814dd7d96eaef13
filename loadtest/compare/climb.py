"""The highest rate a service holds: which to try next, and when it is known. Plain Python over plain numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

STEP_UP, STEP_DOWN = 1.4, 2.0
"""From one rate to the next while only one side of the limit is known."""
PRECISION = 1.1
"""Between the highest rate that held and the lowest that did not, when the search ends."""
CLEARLY = 2.0
"""How many times the limit a p99 is at least when the rate has failed without a second try, unless it is infinite."""
LOWEST = 1 / 8
"""Of the first rate: where the search ends if nothing holds."""
MOST = 5_000.0
"""Requests a second beyond which it does not look."""

Taken: TypeAlias = Mapping[float, Sequence[float]]
"""By rate, the p99 (seconds) of each measurement. The best of a rate's counts: what disturbs makes it slower."""


def highest(taken: Taken, limit: float) -> float | None:
    """The highest of the rates measured whose p99 is under ``limit``, and that of all below it; None when none is.

    A rate above one that failed is luck: it does not count.
    """
    found = None
    for rate in sorted(taken):
        if min(taken[rate]) >= limit:
            return found
        found = rate
    return found


def following(taken: Taken, limit: float, first: float) -> float | None:
    """The rate to measure next, beginning with ``first``; None when the highest that holds is known.

    A rate that fails is measured a second time before it counts.
    """
    if not taken:
        return first
    good = highest(taken, limit)
    bad = min((rate for rate in taken if min(taken[rate]) >= limit), default=None)
    if bad is None:
        assert good is not None
        return good * STEP_UP if good * STEP_UP <= MOST else None
    if len(taken[bad]) == 1 and not CLEARLY * limit <= taken[bad][0] < math.inf:
        return bad
    if good is None:
        return bad / STEP_DOWN if bad / STEP_DOWN >= LOWEST * first else None
    return math.sqrt(good * bad) if bad / good > PRECISION else None
