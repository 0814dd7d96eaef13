"""The soak for seconds on the real service, and its verdict on services that fail in one way each."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import free_port
from tests.loadtest.stub import PATCHED, Stub, program, served

KINDS = {"translate", "beam", "encode", "attention", "stream", "bad"}
RARE = {"too much"}
"""May not come in seconds."""
SOAK = f"""{PATCHED}
import argparse, itertools, json, sys
import loadtest.growth, loadtest.soak as soak
from loadtest.servers import Usage

soak.TIMEOUT = 0.2
loadtest.growth.WARM_SECONDS, loadtest.growth.WINDOW = 0.5, 1.0
memory = itertools.count(100 << 20, int(sys.argv[2]))

class Server:
    url = sys.argv[1]
    def usage(self):
        return Usage(0.0, next(memory))

options = argparse.Namespace(users=6, seconds=4, seed=0)
result, growth = soak.soak(Server(), [f"This is sentence {{number}}." for number in range(9)], options)
print(json.dumps([result, growth.memory]))
"""


def soaked(status: int, figures: dict[str, float], grows: int = 0) -> tuple[dict[str, Any], list[int]]:
    class Answering(Stub):
        def get(self) -> None:
            self.answer(200, "".join(f"any_{name} {value}\n" for name, value in figures.items()).encode())

        def post(self) -> None:
            self.body()
            self.answer(status)

    with served(Answering) as url:
        done = program(SOAK, url, str(grows))
    assert done.returncode == 0, done.stderr
    result, memory = json.loads(done.stdout.splitlines()[-1])
    return result, memory


NOTHING_LEFT: dict[str, float] = {"rows": 0, "rows_in_use": 0, "waiting_tokens": 0}


def test_the_service_answers_all_kinds_of_requests_as_it_should_and_forgets_them(tmp_path: Path) -> None:
    """Whether it grows cannot be told in seconds."""
    command = [sys.executable, "-m", "serving.cli", "loadtest", "--soak", "--seconds", "8", "--users", "12"]
    command += ["--port", str(free_port()), "--output", str(tmp_path / "new" / "soak")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == {}
    assert (result["rows_left"], result["tokens_left"], result["growth"]) == (0, 0, None)
    assert done.returncode == bool(result["faults"])
    assert result["most_rows_in_use"] > 0
    assert {name.rpartition(" ")[0] for name in result["statuses"]} - {""} - RARE == KINDS
    assert result["statuses"]["left"] > 0
    assert result["statuses"]["translate 200"] > 0
    assert sum(result["statuses"].values()) == result["requests"] + result["statuses"]["left"]
    assert result["memory_at_the_end"] > 2**26
    assert json.loads((tmp_path / "new" / "soak" / "soak.json").read_text()) == result
    ElementTree.fromstring((tmp_path / "new" / "soak" / "soak.svg").read_text())


def test_to_be_refused_is_not_wrong_unless_it_is_all_that_ever_happens() -> None:
    result, memory = soaked(429, NOTHING_LEFT)
    assert result["wrong"] == {}
    assert result["faults"] == [f"no {kind} was ever answered" for kind in result["never_answered"]]
    assert set(result["never_answered"]) == KINDS - {"bad"}
    assert result["requests"] > 20
    assert 2 <= len(memory) <= 5


def test_every_kind_that_is_answered_wrongly_is_named() -> None:
    result, _ = soaked(500, NOTHING_LEFT)
    said = set(result["wrong"])
    assert {"translate: 500, not 200 or 504", "bad: 500, not 422"} <= said
    assert sum(result["wrong"].values()) == result["requests"]
    assert len(result["faults"]) == len(said) + len(result["never_answered"])


def test_what_should_be_refused_may_not_be_answered() -> None:
    result, _ = soaked(200, NOTHING_LEFT)
    assert {said.partition(":")[0] for said in result["wrong"]} == {"bad"}
    assert "bad: 200, not 422" in result["wrong"]


@pytest.mark.parametrize(
    ("figures", "left"),
    [(NOTHING_LEFT | {"rows_in_use": 3}, (3, 0)), (NOTHING_LEFT | {"waiting_tokens": 17}, (0, 17))],
)
def test_work_that_nobody_waits_for_any_more_is_a_fault(figures: dict[str, float], left: tuple[int, int]) -> None:
    result, _ = soaked(429, figures)
    assert (result["rows_left"], result["tokens_left"]) == left
    assert f"left when nobody waited: {left[0]} rows, {left[1]} tokens" in result["faults"]


def test_a_service_that_was_never_full_has_not_been_soaked() -> None:
    result, _ = soaked(429, NOTHING_LEFT | {"rows": 64})
    assert "the service was not full: 0 of 64 rows in use at most" in result["faults"]


def test_memory_that_grows_is_a_fault() -> None:
    result, memory = soaked(429, NOTHING_LEFT, grows=10 << 20)
    assert memory == sorted(set(memory))
    assert result["growth"] > 0.02
    assert f"memory grew by {result['growth']:.1%}" in result["faults"]


@pytest.mark.parametrize("arguments", [["--users", "0"], ["--seconds", "0"], ["--seconds", "-3"], ["--users", "many"]])
def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "loadtest.soak", "--output", str(tmp_path / "soak"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "soak").exists()
