"""The load test as a command: start or find a service, load it with Locust, report."""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import importlib
import json
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.arrivals import SHAPES, arrivals
from loadtest.latency import Latency
from loadtest.payloads import BULK_TEXTS, SENTENCES, bulk, interactive, read_sentences
from loadtest.servers import Server, StartFailed, dragoman, end_on_sigterm, wait_until_ready
from loadtest.source import send
from loadtest.timings import percentile
from loadtest.users import Visitor

console = Console(stderr=True, highlight=False)
OTHERS = {
    "--compare": ("loadtest.compare.run", "measure this service against FastAPI with CTranslate2"),
    "--failover": ("loadtest.failover", "replicas that die, come and go under load"),
    "--soak": ("loadtest.soak", "keep a service full for ten minutes, badly behaved users among them"),
}
"""What the command does instead, by its first flag: the module, and what is said of it."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 only when no request failed."""
    for flag, (module, _) in OTHERS.items():
        if flag in arguments:
            other = importlib.import_module(module)
            return int(other.main([argument for argument in arguments if argument != flag]))
    options = _parse(arguments)
    end_on_sigterm()
    try:
        Visitor.sentences = read_sentences(options.data)
        options.report.touch()  # what cannot be written is better known before the test than after it
        with _service(options) as (url, started):
            if options.rate:
                result, environment = arrive(url, options)
            else:
                result, environment = load(url, options.users, options.seconds, options.seed)
            if started:
                result["model"] = started.model
                result["first_translation_seconds"] = round(started.seconds, 1)
                result["memory_mib"] = started.server.usage().memory_bytes >> 20
    except (StartFailed, OSError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    _print(environment, result)
    options.report.write_text(get_html_report(environment), encoding="utf-8")
    console.print(f"report: {options.report}", markup=False)
    print(json.dumps(result))
    return 1 if result["failures"] or not result["requests"] else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dragoman loadtest", description=__doc__)
    for flag, (_, does) in OTHERS.items():
        parser.add_argument(flag, action="store_true", help=f"{does}; {flag} --help")
    parser.add_argument("--users", type=_count, default=16, help="users at one time (16)")
    parser.add_argument("--seconds", type=_count, default=30, help="how long (30)")
    parser.add_argument(
        "--rate", type=float, help="requests a second from users who wait for nobody, on average, instead of --users"
    )
    parser.add_argument("--shape", choices=SHAPES, default="steady", help="of the arrivals over time (steady)")
    parser.add_argument(
        "--bulk", type=int, default=0, help=f"jobs beside them that each send lists of {BULK_TEXTS} texts (0)"
    )
    parser.add_argument("--url", help="a service that runs; one is started unless given")
    parser.add_argument("--bundle", help="bundle to serve: a name that ships, or a folder; not with --url")
    parser.add_argument("--no-ray", action="store_true", help="start it without Ray, in one process; not with --url")
    parser.add_argument("--gpus", help="GPUs of its replica, such as 1: see dragoman serve; not with --url")
    parser.add_argument("--port", type=_count, default=8000, help="port of the service that is started (8000)")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences, one a line; the project's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the users' choices (0)")
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="Locust's HTML report (report.html)")
    options = parser.parse_args(arguments)
    if options.rate is None and (options.bulk or options.shape != "steady"):
        parser.error("--shape and --bulk go with --rate")
    if options.rate is not None and options.rate <= 0:
        parser.error("--rate is to be more than 0")
    for flag, given in (("--bundle", options.bundle), ("--no-ray", options.no_ray), ("--gpus", options.gpus)):
        if options.url is not None and given not in (None, False):
            parser.error(f"{flag} is for a service that is started here, not for one at --url")
    return options


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


class Started(NamedTuple):
    """A service that was started here."""

    server: Server
    model: str
    seconds: float
    """From its start to its first translation."""


@contextmanager
def _service(options: argparse.Namespace) -> Iterator[tuple[str, Started | None]]:
    """The address of a service that answers, and what is started here and stopped afterwards, unless it ran already."""
    if options.url is not None:
        url = options.url.rstrip("/")
        wait_until_ready(f"{url}/readyz", seconds=10)
        yield url, None
        return
    console.print("starting the service")
    begin = time.monotonic()
    arguments = ["--no-ray"] if options.no_ray else []
    for flag, given in (("--bundle", options.bundle), ("--gpus", options.gpus)):
        arguments += [flag, given] if given is not None else []
    with dragoman(options.port, *arguments) as server:
        body = json.dumps({"text": Visitor.sentences[0]}).encode()
        with urllib.request.urlopen(f"{server.url}/v1/translate", body, timeout=60) as answer:
            model = json.loads(answer.read())["model"]
        yield server.url, Started(server, model, time.monotonic() - begin)


def load(url: str, users: int, seconds: int, seed: int) -> tuple[dict[str, Any], Environment]:
    """Load ``url`` for ``seconds`` with ``users`` visitors; returns the figures and Locust's environment."""
    Visitor.seed, Visitor.born = seed, 0
    Visitor.stages.clear()
    environment = Environment(user_classes=[Visitor], host=url)
    runner = environment.create_local_runner()
    history = gevent.spawn(stats_history, runner)
    runner.start(users, spawn_rate=users)
    with Progress(console=console, transient=True) as progress:
        for _ in progress.track(range(seconds * 10), description=f"{users} users, {seconds} s"):
            gevent.sleep(0.1)
    environment.stop_timeout = 30
    runner.stop()
    history.kill(block=False)
    total = environment.stats.total
    result = {
        "users": users,
        "seconds": seconds,
        "requests": total.num_requests,
        "failures": total.num_failures,
        "rps": round(total.num_requests / seconds, 2),
        **{f"p{percent}_ms": total.get_response_time_percentile(percent / 100) for percent in (50, 90, 99)},
        **{f"{stage}_ms": round(percentile(values, 0.5), 2) for stage, values in Visitor.stages.items()},
    }
    runner.quit()
    return result, environment


def arrive(url: str, options: argparse.Namespace) -> tuple[dict[str, Any], Environment]:
    """Load ``url`` with open arrivals; returns the figures and Locust's environment."""
    times = arrivals(options.shape, options.rate, options.seconds, options.seed)
    requests = interactive(Visitor.sentences, times, options.seed)
    # Without anybody to be disturbed they would go on for ever.
    jobs = [bulk(Visitor.sentences, options.seed + number) for number in range(options.bulk if requests else 0)]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{options.shape}, {options.rate:g} requests a second", total=len(requests))
        outcomes, environment = send(url, requests, jobs, lambda: progress.advance(bar))
    kinds: dict[str, Any] = {}
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        latency = Latency.of([outcome for outcome in outcomes if outcome.kind == kind])
        kinds[kind] = {
            "requests": latency.requests,
            "shed": latency.shed,
            "failures": latency.failed,
            **latency.milliseconds(),
        }
    result = {
        "rate": options.rate,
        "shape": options.shape,
        "bulk": options.bulk,
        "seconds": options.seconds,
        "requests": len(outcomes),
        "failures": sum(kind["failures"] for kind in kinds.values()),
        "kinds": kinds,
    }
    return result, environment


def _print(environment: Environment, result: dict[str, Any]) -> None:
    columns = ("p50 ms", "p90 ms", "p99 ms")
    table = Table("request", "requests", "failures", "per second", *columns)
    for entry in [*sorted(environment.stats.entries.values(), key=lambda entry: entry.name), environment.stats.total]:
        times = [f"{entry.get_response_time_percentile(share):.0f}" for share in (0.5, 0.9, 0.99)]
        rate = f"{entry.num_requests / result['seconds']:.1f}"
        table.add_row(entry.name, str(entry.num_requests), str(entry.num_failures), rate, *times)
    console.print(table)
    stages = Table("stage", "answers", *columns)
    for stage, values in Visitor.stages.items():
        times = [f"{percentile(values, share):.2f}" for share in (0.5, 0.9, 0.99)]
        stages.add_row(stage, str(len(values)), *times)
    if Visitor.stages:
        console.print(stages)
    if "memory_mib" in result:
        seconds, memory = result["first_translation_seconds"], result["memory_mib"]
        console.print(f"first translation {seconds} s after the start; {memory:,} MiB at the end")
    for failure in environment.stats.errors.values():
        console.print(f"{failure.occurrences} × {failure.name}: {failure.error}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
