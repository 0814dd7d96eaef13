"""Open arrivals in Locust: every request is sent when it is due, whatever became of those before it.

And bulk jobs beside them: somebody translates a book, one long list after another.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import gevent
from gevent.pool import Group
from locust import FastHttpUser, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.request import Outcome, Request

PATIENCE = 60.0
"""Seconds after which a client gives up."""


def broke_off(response: Any) -> bool:
    """Whether the connection ended in the middle of a good answer, of which Locust tells the first line only."""
    return bool(response.status_code == 200 and response.request_meta["exception"])


class Plan:
    """What is sent, and what has become of it so far."""

    def __init__(
        self, requests: Sequence[Request], bulk: Sequence[Iterator[Request]], sent: Callable[[], None]
    ) -> None:
        self.requests, self.bulk, self.sent = requests, bulk, sent
        self.outcomes: list[Outcome] = []
        self.begin = time.monotonic()
        self.over = False
        """Whether all of ``requests`` are answered: bulk jobs then send no more."""


class Client(FastHttpUser):
    """Somebody who sends requests and notes what becomes of them."""

    abstract = True
    fixed_count = 1
    concurrency = 10_000
    network_timeout = connection_timeout = PATIENCE
    max_retries = 0
    plan: ClassVar[Plan]

    def one(self, request: Request) -> None:
        """Send ``request``."""
        with self.client.post(request.route, json=request.body, name=request.kind, catch_response=True) as response:
            status = response.status_code
            if broke_off(response):
                status = 0
            if status != 200:
                response.failure(f"{status}: {(response.text or 'no answer')[:200]}")
        seconds = time.monotonic() - self.plan.begin - request.due
        self.plan.outcomes.append(Outcome(request.kind, request.due, seconds, status, request.tokens))


class Source(Client):
    """All users in one: it sends, and reads answers side by side."""

    abstract = True

    @task
    def all(self) -> None:
        """Send everything when it is due, and wait for the last answer."""
        underway = Group()
        for request in self.plan.requests:
            gevent.sleep(max(0.0, self.plan.begin + request.due - time.monotonic()))
            underway.spawn(self.one, request)
            self.plan.sent()
        underway.join()
        self.plan.over = True
        raise StopUser


class Bulk(Client):
    """Sends the next list as soon as the last one is answered."""

    abstract = True
    number: ClassVar[Iterator[int]]

    @task
    def all(self) -> None:
        """One list after another."""
        for request in self.plan.bulk[next(self.number)]:
            if self.plan.over:
                break
            self.one(request._replace(due=time.monotonic() - self.plan.begin))
        raise StopUser


def send(
    url: str,
    requests: Sequence[Request],
    bulk: Sequence[Iterator[Request]] = (),
    sent: Callable[[], None] = lambda: None,
) -> tuple[list[Outcome], Environment]:
    """Send ``requests``, which are in order of time, to ``url``, and meanwhile what each of ``bulk`` goes on giving.

    Without ``requests``, each of ``bulk`` is sent to its end. Returns, when all are answered or given up, what became
    of each, and Locust's environment for its report. ``sent`` is called at every one of ``requests``.
    """
    plan = Plan(requests, bulk, sent)
    users = [type("Arrivals", (Source,), {"abstract": False, "plan": plan})] if requests else []
    if bulk:
        shared = {"abstract": False, "plan": plan, "fixed_count": len(bulk), "number": itertools.count()}
        users.append(type("BulkJobs", (Bulk,), shared))
    environment = Environment(user_classes=users, host=url)
    runner = environment.create_local_runner()
    plan.begin = time.monotonic()
    if count := len(bulk) + bool(requests):  # Locust does not start nobody
        runner.start(count, spawn_rate=count)
        runner.spawning_greenlet.join()
    while runner.user_count:
        gevent.sleep(0.02)
    runner.quit()
    assert plan.over or not requests, "a user ended early"
    return plan.outcomes, environment
