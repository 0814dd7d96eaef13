"""Outcomes by the number of replicas there were when they were asked for. Plain Python over plain numbers."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from loadtest.latency import Latency
from loadtest.request import Outcome

SLACK = 0.5
"""Seconds by which clients see later that their connection is gone, and by which clocks may begin apart."""


class Span(NamedTuple):
    """A time in which the number of replicas stays the same."""

    begin: float
    """Seconds from the beginning."""
    replicas: int


def report(
    outcomes: Sequence[Outcome], spans: Sequence[Span], expected: Sequence[int], lost: tuple[float, float] | None = None
) -> dict[str, Any]:
    """What the ``outcomes`` of each span add up to, for JSON, and what did not hold.

    ``expected`` are the numbers of replicas, one span after the other. ``lost``: the seconds between which a
    replica died; what was under way then may have had no answer.
    """
    statuses = Counter(outcome.status for outcome in outcomes)
    wrong = Counter(
        outcome.status
        for outcome in outcomes
        if outcome.status != 200 and not (outcome.status == 0 and _under_way(outcome, lost))
    )
    faults = [f"{count} × {status or 'no answer'}" for status, count in wrong.items()]
    if not statuses[200]:
        faults.append("nothing was answered")
    seen = [span.replicas for span in spans]
    if seen != list(expected):
        faults.append(f"replicas: {', '.join(map(str, seen))}, not {', '.join(map(str, expected))}")
    ends = [*(span.begin for span in spans[1:]), math.inf]
    return {
        "requests": len(outcomes),
        "statuses": {str(status or "no answer"): count for status, count in sorted(statuses.items())},
        "spans": [
            {"begin": round(span.begin, 1), "replicas": span.replicas, **_sum(outcomes, span.begin, end)}
            for span, end in zip(spans, ends, strict=True)
        ],
        "faults": faults,
    }


def _under_way(outcome: Outcome, when: tuple[float, float] | None) -> bool:
    return when is not None and outcome.due - SLACK <= when[1] and when[0] <= outcome.due + outcome.seconds + SLACK


def _sum(outcomes: Sequence[Outcome], begin: float, end: float) -> dict[str, Any]:
    within = [outcome for outcome in outcomes if begin <= outcome.due < end]
    if not within:
        return {"requests": 0}
    latency = Latency.of(within)
    counts = {"requests": latency.requests, "shed": latency.shed, "failures": latency.failed}
    return counts | latency.milliseconds()
