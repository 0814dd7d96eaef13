"""A measurement of a service whose figures are known, in a process of its own: gevent patches what imports Locust."""

import json
import time
from typing import Any

import pytest

from tests.loadtest.stub import PATCHED, Stub, program, served

MEASURE = f"""{PATCHED}
import json, sys
from loadtest.compare.measure import measure, one_by_one
from loadtest.compare.report import point
from loadtest.request import Request
from loadtest.servers import Usage

class Server:
    url = sys.argv[1]
    taken = [Usage(5.0, 1 << 20), Usage(5.5, 3 << 20)]
    def usage(self):
        return self.taken.pop(0)

texts, rate = json.loads(sys.argv[2]), json.loads(sys.argv[3])
requests = [Request(index / 100, "translate", "/v1/translate", {{"text": text}}, 50) for index, text in enumerate(texts)]
found = measure(Server(), requests, rate) if rate else one_by_one(Server(), requests)
print(json.dumps(point(found)))
"""


class Counting(Stub):
    """Has worked before; takes 8 positions for 6 tokens of each text, and refuses bad ones."""

    tokens, padded, now, most = 100.0, 4000.0, 0, 0

    def get(self) -> None:
        said = f"any_source_tokens_total {self.tokens}\nany_padded_tokens_total {self.padded}\n"
        self.answer(200, said.encode())

    def post(self) -> None:
        kind, text = type(self), json.loads(self.body())["text"]
        kind.now += 1
        kind.most = max(kind.most, kind.now)
        time.sleep(0.1)
        kind.now -= 1
        if text == "good":
            kind.tokens += 6
            kind.padded += 8
        self.answer({"good": 200, "bad": 500, "full": 429}[text])


def measured(texts: list[str], rate: float) -> tuple[dict[str, Any], int, float]:
    handler = type("Counting", (Counting,), {})
    with served(handler) as url:
        done = program(MEASURE, url, json.dumps(texts), json.dumps(rate))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found, handler.most, 0.5 / found["cores"]


def test_a_measurement_is_of_what_happened_between_its_beginning_and_its_end() -> None:
    found, most, seconds = measured(["good"] * 8 + ["full", "bad"], 100.0)
    assert (found["rate"], found["requests"], found["shed_share"], found["failures"]) == (100.0, 10, 0.1, 1)
    assert found["padding_share"] == 0.25
    assert found["memory_bytes"] == 3 << 20
    assert found["tokens_per_second"] == pytest.approx(8 * 50 / seconds, rel=0.05), "only what was answered counts"
    assert 0.19 <= seconds < 2
    assert 100 <= found["p50_ms"] < 400
    assert found["p99_ms"] is None
    assert most > 2, "they wait for nobody"


def test_one_by_one_means_that_nobody_else_is_there() -> None:
    found, most, seconds = measured(["good"] * 5, 0)
    assert most == 1
    assert (found["rate"], found["requests"], found["failures"], found["padding_share"]) == (0, 5, 0, 0.25)
    assert 100 <= found["p50_ms"] <= found["p99_ms"] < 200
    assert 0.5 <= seconds < 2


def test_a_service_that_has_encoded_nothing_has_padded_nothing() -> None:
    assert measured(["full"] * 2, 100.0)[0]["padding_share"] == 0
