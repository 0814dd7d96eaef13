"""What the outcomes of requests add up to."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from loadtest.request import Outcome
from loadtest.timings import percentile

SHED = (429, 503)
"""Statuses with which a service refuses what it cannot do in time."""


class Latency(NamedTuple):
    """What outcomes add up to."""

    requests: int
    shed: int
    """Refused with one of `SHED`."""
    failed: int
    """Any other answer than 200, or none."""
    p50: float
    """Seconds; whoever was refused or failed waited for ever."""
    p90: float
    p99: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Latency":
        """Of at least one outcome."""
        waited = [outcome.seconds if outcome.status == 200 else math.inf for outcome in outcomes]
        return cls(
            len(outcomes),
            sum(outcome.status in SHED for outcome in outcomes),
            sum(outcome.status not in (200, *SHED) for outcome in outcomes),
            *(percentile(waited, share) for share in (0.5, 0.9, 0.99)),
        )

    def milliseconds(self) -> dict[str, float | None]:
        """Of p50, p90 and p99, for JSON: None for what never came."""
        times = {name: getattr(self, name) for name in ("p50", "p90", "p99")}
        return {f"{name}_ms": round(1000 * time, 1) if math.isfinite(time) else None for name, time in times.items()}
