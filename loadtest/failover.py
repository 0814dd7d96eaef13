"""Replicas that die, come and go under load: what their clients see of it."""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.arrivals import arrivals
from loadtest.payloads import SENTENCES, interactive, read_sentences
from loadtest.request import Outcome, Request
from loadtest.servers import Server, StartFailed, dragoman, end_on_sigterm
from loadtest.source import send
from loadtest.spans import Span, report
from loadtest.verdict import tell

console = Console(stderr=True, highlight=False)
JSON = "failover.json"
KILLED_AT = 1 / 3
"""Of the time."""
LOOKING = 0.2
"""Seconds between two looks at who listens."""
PATIENCE = 60.0
"""Seconds in which replicas come and go when there is nothing else to do."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 when all held."""
    options = _parse(arguments)
    end_on_sigterm()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        sentences = read_sentences(options.data)
        result: dict[str, Any] = {}
        for name in options.scenarios:
            result[name] = SCENARIOS[name](sentences, options)
            # What is known is not lost with what comes after it.
            (options.output / JSON).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            show(name, result[name])
    except (StartFailed, OSError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    console.print(f"written: {options.output / JSON}", markup=False)
    print(json.dumps(result))
    return 1 if any(found["faults"] for found in result.values()) else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dragoman loadtest --failover", description=__doc__)
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="a replica that dies; a spike; both"
    )
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, on average (20)")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long, each of them (90)")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences, one a line; the project's own")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals and of what they ask (0)")
    parser.add_argument("--port", type=int, default=8000, help="port of the services that are started (8000)")
    parser.add_argument("--output", type=Path, default=Path("runs/failover"), help="folder (runs/failover)")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or options.seconds <= 0:
        parser.error("--rate and --seconds are to be more than 0")
    return options


def death(sentences: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Two replicas of one core, one of which is killed after a third of the time; Ray starts another."""
    with dragoman(options.port, "--replicas", "2", "--cpus", "1") as server:
        killed_at = KILLED_AT * options.seconds

        def kill() -> None:
            gevent.sleep(killed_at)
            os.kill(min(server.listening()), signal.SIGKILL)

        outcomes, spans = watch(server, _requests("steady", sentences, options), [2, 1, 2], kill)
    # Where the machine is busy, it dies later than it was to.
    noticed = spans[1].begin if len(spans) > 1 else killed_at
    return report(outcomes, spans, [2, 1, 2], (killed_at, noticed))


def scaling(sentences: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """One replica of one core and a spike for which another is started, and ended after it."""
    # Two or three rows in use: more than before the spike, and fewer than in it on any machine that needs replicas.
    scale = ("--max-replicas", "2", "--scale-up-seconds", "2", "--scale-down-seconds", "10", "--target-load", "0.02")
    with dragoman(options.port, "--replicas", "1", "--cpus", "1", *scale) as server:
        outcomes, spans = watch(server, _requests("spike", sentences, options), [1, 2, 1])
    return report(outcomes, spans, [1, 2, 1])


SCENARIOS = {"death": death, "scaling": scaling}


def _requests(shape: str, sentences: Sequence[str], options: argparse.Namespace) -> list[Request]:
    times = arrivals(shape, options.rate, options.seconds, options.seed)
    return interactive(sentences, times, options.seed)


def watch(
    server: Server, requests: Sequence[Request], expected: Sequence[int], act: Callable[[], None] = lambda: None
) -> tuple[list[Outcome], list[Span]]:
    """Send ``requests`` while ``act`` runs beside; returns what became of them, and how many replicas there were when.

    Begins when as many listen as are ``expected`` first, ends when the last of these numbers has been reached: both
    within `PATIENCE`. StartFailed when it does not begin.
    """
    if not until(lambda: len(server.listening()) == expected[0]):
        raise StartFailed(f"{len(server.listening())} replicas listen, not {expected[0]}")
    begin, spans = time.monotonic(), [Span(0.0, expected[0])]

    def look() -> None:
        while True:
            # In a thread: it takes milliseconds in which nobody could send.
            replicas = len(gevent.get_hub().threadpool.apply(server.listening))
            now = time.monotonic() - begin
            if replicas != spans[-1].replicas:
                spans.append(Span(now, replicas))
            gevent.sleep(LOOKING)

    beside = [gevent.spawn(look), gevent.spawn(act)]
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"replicas: {' → '.join(map(str, expected))}", total=len(requests))
            outcomes, _ = send(server.url, requests, sent=lambda: progress.advance(bar))
            until(lambda: len(spans) >= len(expected))
        for each in beside:
            if each.exception:
                raise each.exception
    finally:
        gevent.killall(beside)
    return outcomes, spans


def until(met: Callable[[], bool]) -> bool:
    """Whether it is ``met`` within `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        if time.monotonic() > deadline:
            return False
        gevent.sleep(LOOKING)
    return True


def show(name: str, found: dict[str, Any]) -> None:
    """Print it."""
    columns = ("from s", "replicas", "requests", "refused", "failed", "p50 ms", "p90 ms", "p99 ms")
    table = Table(*columns, title=f"{name}: {found['statuses']}", title_justify="left")
    for span in found["spans"]:
        table.add_row(*(str(value) for value in span.values()))
    console.print(table)
    tell(console, found["faults"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
