"""One measurement: a service, a rate, and what became of the requests."""

import time
from collections.abc import Callable, Sequence

from loadtest.arrivals import arrivals
from loadtest.compare.models import Model
from loadtest.compare.point import Point
from loadtest.latency import Latency
from loadtest.request import Request
from loadtest.servers import Server
from loadtest.source import send

LEAST_REQUESTS = 300
"""In a measurement: three of them are above its p99."""


def at_rate(
    server: Server,
    model: Model,
    beam_size: int,
    rate: float,
    seconds: float,
    seed: int,
    sent: Callable[[], None] = lambda: None,
) -> Point:
    """Open arrivals at ``rate`` for ``seconds``, or as long as `LEAST_REQUESTS` take."""
    times = arrivals("steady", rate, max(seconds, LEAST_REQUESTS / rate), seed) or [0.0]
    return _measure(server, rate, model.requests(beam_size, times, seed), sent)


def at_once(server: Server, model: Model, beam_size: int, count: int, seed: int) -> Point:
    """``count`` requests that all come at the beginning: how much the service can do at most."""
    return _measure(server, float("inf"), model.requests(beam_size, [0.0] * count, seed), lambda: None)


def _measure(server: Server, rate: float, asked: Sequence[Request], sent: Callable[[], None]) -> Point:
    before, begin = server.usage(), time.monotonic()
    outcomes, _ = send(server.url, asked, sent=sent)
    seconds, after = time.monotonic() - begin, server.usage()
    answered = sum(outcome.tokens for outcome in outcomes if outcome.status == 200)
    cores = (after.cpu_seconds - before.cpu_seconds) / seconds
    return Point(rate, Latency.of(outcomes), answered / seconds, cores, after.memory_bytes)
