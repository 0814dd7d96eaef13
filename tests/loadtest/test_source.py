"""What is sent and when, in processes of their own: gevent patches whatever imports Locust."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.loadtest.stub import PATCHED, Stub, program, served

DELAY = 0.2
SEND = f"""{PATCHED}
import itertools, json, sys
from loadtest.request import Request
from loadtest.source import send

url, interactive, lists, endless = sys.argv[1], *map(json.loads, sys.argv[2:])
requests = [Request(due, "single", "/v1/translate", {{"text": f"single {{due}}"}}, 1) for due in interactive]

def job(number, length):
    for place in range(length) if length else itertools.count():
        yield Request(0.0, f"bulk {{number}}", "/v1/translate", {{"text": f"{{number}} {{place}}"}}, 7)

called = []
bulk = [job(number, length) for number, length in enumerate(lists)]
outcomes, environment = send(url, requests, bulk + [job(99, 0)] * endless, lambda: called.append(1))
print(json.dumps([outcomes, len(called), environment.stats.total.num_requests]))
"""


class Slow(Stub):
    """Answers after a while; notes what it was asked and how many others were asking at that time."""

    lock = threading.Lock()
    seen: list[str]
    begun: list[float]
    now: int
    most: int

    def post(self) -> None:
        text, kind = str(json.loads(self.body())["text"]), type(self)
        with self.lock:
            kind.seen.append(text)
            kind.begun.append(time.monotonic())
            kind.now += 1
            kind.most = max(kind.most, kind.now)
        time.sleep(DELAY)
        with self.lock:
            kind.now -= 1
        self.answer(503 if text.endswith(" 1") else 200)


@pytest.fixture
def slow() -> Iterator[tuple[str, type[Slow]]]:
    handler = type("Slow", (Slow,), {"seen": [], "begun": [], "now": 0, "most": 0})
    with served(handler) as url:
        yield url, handler


def send(url: str, interactive: list[float], lists: list[int], endless: int = 0) -> tuple[list[Any], int, int]:
    done = program(SEND, url, json.dumps(interactive), json.dumps(lists), str(endless), timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    outcomes, called, total = json.loads(done.stdout.splitlines()[-1])
    return outcomes, called, total


def test_a_list_without_anything_beside_it_is_sent_to_its_end_one_after_another(slow: tuple[str, type[Slow]]) -> None:
    url, service = slow
    outcomes, called, total = send(url, [], [4])
    assert service.seen == ["0 0", "0 1", "0 2", "0 3"]
    assert service.most == 1
    assert (called, total) == (0, 4)
    assert [(kind, status, tokens) for kind, _, _, status, tokens in outcomes] == [
        ("bulk 0", status, 7) for status in (200, 503, 200, 200)
    ]
    for before, (_, due, seconds, _, _) in zip([None, *outcomes], outcomes, strict=False):
        assert DELAY <= seconds < 2 * DELAY, "each is timed from its own start"
        assert before is None or due >= before[1] + before[2]


def test_lists_are_sent_side_by_side_and_each_in_its_order_to_its_own_end(slow: tuple[str, type[Slow]]) -> None:
    url, service = slow
    outcomes, _, _ = send(url, [], [1, 5, 3])
    for number, length in enumerate([1, 5, 3]):
        mine = [text for text in service.seen if text.startswith(f"{number} ")]
        assert mine == [f"{number} {place}" for place in range(length)]
    assert len(outcomes) == len(service.seen) == 9
    assert service.most == 3


def test_with_others_a_list_without_end_stops_when_they_are_answered(slow: tuple[str, type[Slow]]) -> None:
    url, service = slow
    due = [0.0, 0.01, 0.02, 1.0]
    outcomes, called, _ = send(url, due, [2], endless=1)
    singles = [outcome for outcome in outcomes if outcome[0] == "single"]
    assert called == len(singles) == 4
    assert service.most >= 4, "they wait for nobody"
    assert all(DELAY <= seconds < 3 * DELAY for _, _, seconds, _, _ in singles)
    endless = [outcome for outcome in outcomes if outcome[0] == "bulk 99"]
    assert 3 <= len(endless) <= 10
    last = max(outcome[1] + outcome[2] for outcome in singles)
    assert all(outcome[1] <= last for outcome in endless)


def test_an_answer_that_breaks_off_is_none() -> None:
    class Breaking(Stub):
        def post(self) -> None:
            self.body()
            self.answer(200, b"half", missing=4)

    with served(Breaking) as url:
        outcomes, _, _ = send(url, [0.0, 0.1], [])
    assert [status for _, _, _, status, _ in outcomes] == [0, 0]


def test_nothing_to_send_is_over_at_once(slow: tuple[str, type[Slow]]) -> None:
    url, service = slow
    assert send(url, [], []) == ([], 0, 0)
    assert send(url, [], [])[0] == service.seen == []
