"""The load test as a command: start or find a service, load it with Locust, report."""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.payloads import SENTENCES, read_sentences
from loadtest.timings import percentile
from loadtest.users import Visitor

console = Console(stderr=True, highlight=False)
START_SECONDS = 180


class LoadTestError(Exception):
    """The test could not be run."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 only when no request failed."""
    options = _parse(arguments)
    try:
        Visitor.sentences = read_sentences(options.data)
        options.report.touch()  # what cannot be written is better known before the test than after it
        with _service(options.url, options.port) as url:
            result, environment = load(url, options.users, options.seconds, options.seed)
    except (LoadTestError, OSError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    _print(environment, result)
    options.report.write_text(get_html_report(environment), encoding="utf-8")
    console.print(f"report: {options.report}", markup=False)
    print(json.dumps(result))
    return 1 if result["failures"] or not result["requests"] else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dragoman loadtest", description=__doc__)
    parser.add_argument("--users", type=_count, default=16, help="users at one time (16)")
    parser.add_argument("--seconds", type=_count, default=30, help="how long (30)")
    parser.add_argument("--url", help="a service that runs; one is started unless given")
    parser.add_argument("--port", type=_count, default=8000, help="port of the service that is started (8000)")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences, one a line; the project's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the users' choices (0)")
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="Locust's HTML report (report.html)")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


@contextmanager
def _service(url: str | None, port: int) -> Iterator[str]:
    """The address of a service that is ready: the one at ``url``, or one started here and stopped afterwards."""
    if url is not None:
        _wait_until_ready(url.rstrip("/"), None)
        yield url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            # Else what runs there would be measured in place of ours.
            said = f"port {port}: {error.strerror}; name another with --port, or the service there with --url"
            raise LoadTestError(said) from None
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(url: str, process: "subprocess.Popen[str] | None") -> None:
    deadline = time.monotonic() + (START_SECONDS if process else 10)
    with console.status(f"waiting for {url}"):
        while True:
            if process and process.poll() is not None:
                said = process.stdout.read().strip() if process.stdout else ""
                raise LoadTestError(f"the service did not start: {said}")
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise LoadTestError(f"{url} is not ready: {error}") from None
            time.sleep(0.2)


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


def _print(environment: Environment, result: dict[str, Any]) -> None:
    columns = ("p50 ms", "p90 ms", "p99 ms")
    table = Table("request", "requests", "failures", "per second", *columns)
    for entry in [*sorted(environment.stats.entries.values(), key=lambda entry: entry.name), environment.stats.total]:
        times = [f"{entry.get_response_time_percentile(share):.0f}" for share in (0.5, 0.9, 0.99)]
        rate = f"{entry.num_requests / result['seconds']:.1f}"
        table.add_row(entry.name, str(entry.num_requests), str(entry.num_failures), rate, *times)
    console.print(table)
    stages = Table("stage, inside the server", "answers", *columns)
    for stage, values in Visitor.stages.items():
        times = [f"{percentile(values, share):.2f}" for share in (0.5, 0.9, 0.99)]
        stages.add_row(stage, str(len(values)), *times)
    console.print(stages)
    for failure in environment.stats.errors.values():
        console.print(f"{failure.occurrences} × {failure.name}: {failure.error}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
