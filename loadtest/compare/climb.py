"""The highest rate a service holds: which to try next, and when it is known. Plain Python over plain numbers."""

import math
from collections.abc import Mapping

STEP = 1.4
"""From one rate to the next while only one side of the limit is known."""
PRECISION = 1.1
"""Between the highest rate that held and the lowest that did not, when the search ends."""
LEAST, MOST = 1.0, 5_000.0
"""Requests a second between which it looks."""


def highest(p99: Mapping[float, float], limit: float) -> float | None:
    """The highest of the rates measured whose ``p99`` (seconds by rate) is under ``limit``, and that of all below it.

    A rate above one that failed is luck: it does not count. None when no rate held.
    """
    found = None
    for rate in sorted(p99):
        if p99[rate] >= limit:
            return found
        found = rate
    return found


def following(p99: Mapping[float, float], limit: float, first: float) -> float | None:
    """The rate to measure next, beginning with ``first``; None when the highest that holds is known."""
    if not p99:
        return first
    good = highest(p99, limit)
    bad = min((rate for rate in p99 if p99[rate] >= limit), default=None)
    if good is None:
        assert bad is not None
        return max(LEAST, bad / STEP) if bad > LEAST else None
    if bad is None:
        return good * STEP if good * STEP <= MOST else None
    return math.sqrt(good * bad) if bad / good > PRECISION else None
