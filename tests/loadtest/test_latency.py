import math

from loadtest.latency import Latency
from loadtest.request import Outcome


def outcome(seconds: float, status: int = 200) -> Outcome:
    return Outcome("translate", 0.0, seconds, status)


def test_percentiles_are_of_the_time_everybody_waited() -> None:
    found = Latency.of([outcome(number / 100) for number in range(100, 0, -1)])
    assert (found.requests, found.shed, found.failed) == (100, 0, 0)
    assert (found.p50, found.p90, found.p99) == (0.5, 0.9, 0.99)


def test_whoever_is_refused_or_gets_no_answer_waits_for_ever() -> None:
    found = Latency.of([outcome(0.1)] * 95 + [outcome(0.01, status) for status in (429, 503, 500, 504, 0)])
    assert (found.requests, found.shed, found.failed) == (100, 2, 3)
    assert (found.p50, found.p90) == (0.1, 0.1)
    assert found.p99 == math.inf


def test_milliseconds_are_rounded_and_what_never_came_is_none() -> None:
    found = Latency(100, 0, 5, 0.01234, 0.25, math.inf).milliseconds()
    assert found == {"p50_ms": 12.3, "p90_ms": 250.0, "p99_ms": None}
