"""A replica of the real service dies while clients ask; what is said of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.servers import free_port
from tests.loadtest.stub import PATCHED, Stub, program, served

WATCH = f"""{PATCHED}
import json, sys, time
import gevent
import loadtest.failover as failover
from loadtest.request import Request

failover.LOOKING, failover.PATIENCE = 0.02, 0.5
url, counts = sys.argv[1], json.loads(sys.argv[2])

class Server:
    begin = None
    def __init__(self):
        self.url = url
    def listening(self):
        Server.begin = Server.begin or time.monotonic()
        passed = [count for seconds, count in counts if time.monotonic() - Server.begin >= seconds]
        return set(range(passed[-1]))

def act():
    gevent.sleep(0.1)
    if len(sys.argv) > 3:
        raise OSError("nobody to kill")

requests = [Request(due / 10, "single", "/", {{}}, 1) for due in range(5)]
try:
    outcomes, spans = failover.watch(Server(), requests, [2, 1, 2], act)
    print(json.dumps([[outcome.status for outcome in outcomes], [span.replicas for span in spans]]))
except Exception as error:
    print(json.dumps(str(error)))
"""


def watched(counts: list[tuple[float, int]], *more: str) -> object:
    """By seconds since somebody first looked, how many listen."""
    with served(Stub) as url:
        done = program(WATCH, url, json.dumps(counts), *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("counts", "seen"),
    [
        ([(0, 2), (0.3, 1), (0.7, 2)], [2, 1, 2]),
        ([(0, 0), (0.2, 2), (0.5, 1), (0.9, 2)], [2, 1, 2]),
        ([(0, 2), (0.3, 1)], [2, 1]),
        ([(0, 2)], [2]),
    ],
)
def test_replicas_are_counted_from_when_all_are_there_and_not_waited_for_for_ever(
    counts: list[tuple[float, int]], seen: list[int]
) -> None:
    assert watched(counts) == [[200] * 5, seen]


def test_it_does_not_begin_with_fewer_and_says_what_could_not_be_done() -> None:
    assert watched([(0, 1)]) == "1 replicas listen, not 2"
    assert watched([(0, 2), (0.1, 1), (0.2, 2)], "fail") == "nobody to kill"


@pytest.mark.slow
def test_a_replica_that_dies_costs_a_few_requests_and_another_takes_its_place(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "loadtest", "--failover", "--scenarios", "death", "--rate", "8"]
    command += ["--seconds", "9", "--port", str(free_port()), "--output", str(tmp_path / "new" / "failover")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "new" / "failover" / "failover.json").read_text()) == result
    assert list(result) == ["death"]
    found = result["death"]
    assert found["faults"] == []
    assert [span["replicas"] for span in found["spans"]] == [2, 1, 2]
    assert found["spans"][1]["begin"] > 2.5
    assert sum(span["requests"] for span in found["spans"]) == found["requests"] > 40
    assert found["statuses"]["200"] > 0
