"""A service kept full for a long time by users who also behave badly: it must answer, forget them, and not grow."""

# Locust's sockets come from gevent, which has to patch the standard library before anything else imports it.
from gevent import monkey

monkey.patch_all()

import argparse
import json
import random
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
from locust import FastHttpUser, between, task
from locust.env import Environment
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.events import ending
from loadtest.figures import figures
from loadtest.growth import Growth, plot
from loadtest.payloads import SENTENCES, read_sentences
from loadtest.servers import Server, StartFailed, dragoman, end_on_sigterm
from loadtest.source import broke_off
from loadtest.verdict import tell

console = Console(stderr=True, highlight=False)
TIMEOUT = 5
"""Seconds the service may take for a request: some ask for more than it does in that time."""
INTERVAL = 1.0
"""Seconds between two looks at the service."""
IMPATIENCE = 0.3
"""Seconds at most after which somebody who leaves has left."""
ANSWERED = ("translate", "beam", "encode", "attention", "stream")
"""Kinds of requests that are answered now and then however full the service is."""
MOST_GROWTH = 0.02
"""Of memory, from after the first minute to the end."""
BAD: list[tuple[str, str, bytes, int]] = [
    ("POST", "/v1/translate", b'{"text": "cut short', 400),
    ("POST", "/v1/translate", b"\xff\xfe", 400),
    ("POST", "/v1/translate", b'{"text": 7}', 422),
    ("POST", "/v1/translate", b'{"text": "One.", "colour": "red"}', 422),
    ("POST", "/v1/translate", b'{"text": "   "}', 422),
    ("POST", "/v1/translate", b'{"text": "One.", "target": "tlh"}', 422),
    ("POST", "/v1/translate", b'{"text": "One.", "beam_size": 1000000}', 422),
    ("POST", "/v1/translate", json.dumps({"text": "x" * 20_001}).encode(), 413),
    ("POST", "/v1/encode", b'{"text": []}', 422),
    ("POST", "/v1/attention", b'{"text": "One.", "layer": 99}', 422),
    ("POST", "/v1/nothing", b"{}", 404),
    ("DELETE", "/v1/translate", b"", 405),
]
"""Requests that are refused, and with what status."""


class Soaker(FastHttpUser):
    """Asks again and again, in all the ways there are."""

    abstract = True
    wait_time = between(0.0, 0.1)
    sentences: ClassVar[list[str]]
    wrong: ClassVar[Counter[str]]
    """What was answered that should not have been."""
    statuses: ClassVar[Counter[str]]
    seed: ClassVar[int]
    born: ClassVar[int]
    network_timeout = connection_timeout = 60.0

    def on_start(self) -> None:
        """Give each a stream of random numbers of its own, and another kind of request to begin with."""
        type(self).born += 1
        self.random = random.Random(f"{self.seed}/{self.born}")
        # Some kinds are rare: none is to be missing where the soak is short.
        kinds = (*ANSWERED, "bad")
        getattr(self, kinds[self.born % len(kinds)])()

    def ask(self, kind: str, method: str, route: str, body: bytes, expected: tuple[int, ...]) -> None:
        """Send a request to which one of the ``expected`` statuses is the answer; being refused for a while is too.

        A stream's status is sent before its work is done, so it is its last event that counts.
        """
        with self.client.request(method, route, data=body, name=kind, catch_response=True) as response:
            status: int | str = response.status_code
            if broke_off(response):
                status = "cut off"
            elif status == 200 and kind == "stream":
                status = ending(response.text or "")
            self.statuses[f"{kind} {status}"] += 1
            if status in (*expected, 429):
                response.success()
            else:
                said = f"{kind}: {status}, not {' or '.join(map(str, expected))}"
                self.wrong[said] += 1
                response.failure(said)

    def post(self, kind: str, route: str, body: dict[str, Any], *expected: int) -> None:
        """The same with a JSON body."""
        self.ask(kind, "POST", route, json.dumps(body).encode(), expected)

    @task(200)
    def translate(self) -> None:
        """One sentence; when the service is full it may come too late."""
        self.post("translate", "/v1/translate", {"text": self.random.choice(self.sentences)}, 200, 504)

    @task(20)
    def beam(self) -> None:
        """A few with a beam."""
        texts = self.random.sample(self.sentences, 3)
        self.post("beam", "/v1/translate", {"text": texts, "beam_size": 4}, 200, 504)

    @task(30)
    def encode(self) -> None:
        """A vector."""
        self.post("encode", "/v1/encode", {"text": self.random.choice(self.sentences)}, 200, 504)

    @task(10)
    def attention(self) -> None:
        """What a short text attends to."""
        self.post("attention", "/v1/attention", {"text": self.random.choice(self.sentences)[:120]}, 200, 504)

    @task(30)
    def stream(self) -> None:
        """A translation as it grows."""
        body = {"text": self.random.choice(self.sentences), "stream": True}
        self.post("stream", "/v1/translate", body, 200, 504)

    @task(1)
    def too_much(self) -> None:
        """More than can be done in time."""
        texts = self.random.choices(self.sentences, k=100)
        self.post("too much", "/v1/translate", {"text": texts, "beam_size": 8}, 200, 504)

    @task(40)
    def bad(self) -> None:
        """What is refused."""
        method, route, body, status = self.random.choice(BAD)
        self.ask("bad", method, route, body, (status,))

    @task(60)
    def leave(self) -> None:
        """Ask and go, at any moment: while writing, waiting or reading."""
        address = urlsplit(self.host)
        text = self.random.choice(self.sentences)
        body = json.dumps({"text": text, "stream": self.random.random() < 0.5}).encode()
        head = f"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        sent = (head + body)[: self.random.choice([len(head) // 2, len(head) + len(body) // 2, None])]
        try:
            with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
                connection.sendall(sent)
                gevent.sleep(self.random.uniform(0, IMPATIENCE))
            self.statuses["left"] += 1
        except OSError as error:
            self.wrong[f"leave: {error}"] += 1


def main(arguments: list[str]) -> int:
    """Run the command with ``arguments``; the exit status is 0 when all held."""
    options = _parse(arguments)
    end_on_sigterm()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        sentences = read_sentences(options.data)
        console.print("starting the service")
        with dragoman(options.port, "--timeout", str(TIMEOUT)) as server:
            result, growth = soak(server, sentences, options)
    except (StartFailed, OSError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    (options.output / "soak.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if growth.memory:
        (options.output / "soak.svg").write_text(plot(growth), encoding="utf-8")
    _show(result)
    console.print(f"written: {options.output / 'soak.json'}, {options.output / 'soak.svg'}", markup=False)
    print(json.dumps(result))
    return 1 if result["faults"] else 0


def soak(server: Server, sentences: list[str], options: argparse.Namespace) -> tuple[dict[str, Any], Growth]:
    """Load ``server`` for as long as asked; returns what was found, and memory over time."""
    shared = {"abstract": False, "sentences": sentences, "seed": options.seed, "born": 0}
    user = type("Soaking", (Soaker,), {**shared, "wrong": Counter(), "statuses": Counter()})
    environment = Environment(user_classes=[user], host=server.url)
    runner = environment.create_local_runner()
    runner.start(options.users, spawn_rate=options.users)
    growth, begin, rows, full = Growth(), time.monotonic(), 0.0, 1.0
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{options.users} users, {options.seconds} s", total=options.seconds)
        while (now := time.monotonic() - begin) < options.seconds:
            progress.update(bar, completed=now)
            try:
                found = figures(server.url)
            except OSError as error:
                user.wrong[f"figures: {error}"] += 1  # type: ignore[attr-defined]
                break
            rows, full = max(rows, found["rows_in_use"]), found["rows"]
            growth.add(now, server.usage().memory_bytes)
            gevent.sleep(INTERVAL)
    environment.stop_timeout = 60
    runner.stop()
    runner.quit()
    left = _idle(server.url)
    total, wrong = environment.stats.total, dict(user.wrong)  # type: ignore[attr-defined]
    statuses = dict(sorted(user.statuses.items()))  # type: ignore[attr-defined]
    refused = [kind for kind in ANSWERED if f"{kind} 200" not in statuses]
    share = growth.share
    result = {
        "users": options.users,
        "seconds": options.seconds,
        "requests": total.num_requests,
        "statuses": statuses,
        "never_answered": refused,
        "wrong": wrong,
        "rows": int(full),
        "most_rows_in_use": int(rows),
        "rows_left": int(left["rows_in_use"]) if left else None,
        "tokens_left": int(left["waiting_tokens"]) if left else None,
        "memory_after_the_first_minute": int(growth.after_the_first_minute) if growth.memory else None,
        "memory_at_the_end": int(growth.at_the_end) if growth.memory else None,
        "growth": None if share is None else round(share, 4),
    }
    return {**result, "faults": faults(result)}, growth


def faults(result: dict[str, Any]) -> list[str]:
    """What did not hold."""
    found = [f"{count} × {said}" for said, count in result["wrong"].items()]
    found += [f"no {kind} was ever answered" for kind in result["never_answered"]]
    if result["most_rows_in_use"] < result["rows"]:
        found.append(f"the service was not full: {result['most_rows_in_use']} of {result['rows']} rows in use at most")
    if result["rows_left"] is None:
        found.append("what was left when nobody waited is not known: the service gave no figures")
    elif result["rows_left"] or result["tokens_left"]:
        found.append(f"left when nobody waited: {result['rows_left']} rows, {result['tokens_left']} tokens")
    if result["growth"] is not None and result["growth"] > MOST_GROWTH:
        found.append(f"memory grew by {result['growth']:.1%}")
    return found


def _idle(url: str) -> dict[str, float] | None:
    """The service's figures when nothing is left to be done, or after a while in which that did not happen.

    None when it gives none.
    """
    deadline = time.monotonic() + 2 * TIMEOUT
    while True:
        try:
            found = figures(url)
        except OSError:
            return None
        if not found["rows_in_use"] + found["waiting_tokens"] or time.monotonic() > deadline:
            return found
        gevent.sleep(0.1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dragoman loadtest --soak", description=__doc__)
    parser.add_argument("--users", type=int, default=128, help="users at one time (128)")
    parser.add_argument("--seconds", type=int, default=600, help="how long; the first minute is to warm up (600)")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences, one a line; the project's own")
    parser.add_argument("--seed", type=int, default=0, help="of what the users do (0)")
    parser.add_argument("--port", type=int, default=8000, help="port of the service that is started (8000)")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder (runs/soak)")
    options = parser.parse_args(arguments)
    if options.users < 1 or options.seconds < 1:
        parser.error("--users and --seconds are to be more than 0")
    return options


def _show(result: dict[str, Any]) -> None:
    table = Table("request and status", "times")
    for name, count in result["statuses"].items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    if (begin := result["memory_after_the_first_minute"]) and (end := result["memory_at_the_end"]):
        console.print(f"memory {begin / 2**20:,.0f} MiB after the first minute, {end / 2**20:,.0f} at the end")
    left = "?" if result["rows_left"] is None else result["rows_left"]
    console.print(f"rows in use: {result['most_rows_in_use']} at most, {left} left at the end")
    if result["growth"] is None:
        console.print("too short to say whether memory grows")
    tell(console, result["faults"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
