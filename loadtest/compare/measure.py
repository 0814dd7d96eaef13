"""One measurement: a service, requests, and what became of them."""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from loadtest.compare.point import Point
from loadtest.figures import figures
from loadtest.latency import Latency
from loadtest.request import Outcome, Request
from loadtest.servers import Server
from loadtest.source import send


def measure(server: Server, requests: Sequence[Request], rate: float = math.inf) -> Point:
    """Send ``requests``, which come at ``rate``, when they are due."""
    return _watched(server, rate, lambda: send(server.url, requests)[0])


def beside_bulk(server: Server, requests: Sequence[Request], bulk: Iterator[Request]) -> tuple[Latency, float]:
    """The latency of ``requests`` while somebody sends one of ``bulk`` after another, and what that one got.

    Target tokens a second of lists that were answered.
    """
    begin = time.monotonic()
    outcomes, _ = send(server.url, requests, [bulk])
    kind, seconds = requests[0].kind, time.monotonic() - begin
    done = sum(outcome.tokens for outcome in outcomes if outcome.kind != kind and outcome.status == 200)
    return Latency.of([outcome for outcome in outcomes if outcome.kind == kind]), done / seconds


def one_by_one(server: Server, requests: Sequence[Request]) -> Point:
    """Send each of ``requests`` when the one before it is answered: how long the service takes with nobody else."""
    return _watched(server, 0.0, lambda: send(server.url, (), [iter(requests)])[0])


def _watched(server: Server, rate: float, load: Callable[[], list[Outcome]]) -> Point:
    padding, usage, begin = _padding(server), server.usage(), time.monotonic()
    outcomes = load()
    seconds, used = time.monotonic() - begin, server.usage()
    tokens, positions = (after - before for after, before in zip(_padding(server), padding, strict=True))
    return Point(
        rate,
        Latency.of(outcomes),
        sum(outcome.tokens for outcome in outcomes if outcome.status == 200) / seconds,
        1 - tokens / positions if positions else 0.0,
        (used.cpu_seconds - usage.cpu_seconds) / seconds,
        used.memory_bytes,
    )


def _padding(server: Server) -> tuple[float, float]:
    """Source tokens the service has encoded, and the positions it has worked on for them; see `Point`."""
    found = figures(server.url)
    return found["source_tokens_total"], found["padded_tokens_total"]
