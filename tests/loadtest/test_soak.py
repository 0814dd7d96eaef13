"""The soak for seconds on the real service, and its verdict on services that fail in one way each."""

import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import free_port
from tests.loadtest.stub import PATCHED, Stub, program, served

NOTHING_LEFT: dict[str, float] = {"rows": 0, "rows_in_use": 0, "waiting_tokens": 0}
KINDS = {"translate", "beam", "encode", "attention", "stream", "bad"}
RARE = {"too much"}
"""May not come in seconds."""
SOAK = f"""{PATCHED}
import argparse, itertools, json, sys
import loadtest.growth, loadtest.soak as soak
from loadtest.servers import Usage

soak.TIMEOUT, soak.INTERVAL = 0.2, 0.1
soak.Soaker.tasks += [soak.Soaker.stream] * 60  # which end in more than one way
loadtest.growth.WARM_SECONDS, loadtest.growth.WINDOW = 0.1, 0.2
memory = itertools.count(100 << 20, int(sys.argv[2]))

class Server:
    url = sys.argv[1]
    def usage(self):
        return Usage(0.0, next(memory))

options = argparse.Namespace(users=6, seconds=1.5, seed=0)
result, growth = soak.soak(Server(), [f"This is sentence {{number}}." for number in range(9)], options)
print(json.dumps([result, growth.memory]))
"""


def soaked(
    status: int,
    figures: dict[str, float] = NOTHING_LEFT,
    grows: int = 0,
    streams: Sequence[bytes] = (b"",),
    missing: int = 0,
    dies: bool = False,
) -> tuple[dict[str, Any], list[int]]:
    """A soak of a service that answers everything with ``status``, and who asks for a stream with those in turn.

    ``missing``: bytes of every answer that never come. ``dies``: it says its ``figures`` only once.
    """
    asked, ends = itertools.count(), itertools.cycle(streams)

    class Answering(Stub):
        def get(self) -> None:
            said = "".join(f"any_{name} {value}\n" for name, value in figures.items())
            self.answer(500 if dies and next(asked) else 200, said.encode())

        def post(self) -> None:
            self.answer(status, next(ends) if b'"stream": true' in self.body() else b"", missing)

    with served(Answering) as url:
        done = program(SOAK, url, str(grows))
    assert done.returncode == 0, done.stderr
    result, memory = json.loads(done.stdout.splitlines()[-1])
    return result, memory


@pytest.mark.slow
def test_the_service_answers_all_kinds_of_requests_as_it_should_and_forgets_them(tmp_path: Path) -> None:
    """Whether it grows cannot be told in seconds."""
    command = [sys.executable, "-m", "serving.cli", "loadtest", "--soak", "--seconds", "5", "--users", "12"]
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
    result, memory = soaked(429)
    assert result["wrong"] == {}
    assert result["faults"] == [f"no {kind} was ever answered" for kind in result["never_answered"]]
    assert set(result["never_answered"]) == KINDS - {"bad"}
    assert result["requests"] > 20
    assert len(memory) >= 2


def test_every_kind_that_is_answered_wrongly_is_named() -> None:
    result, _ = soaked(500)
    said = set(result["wrong"])
    assert {"translate: 500, not 200 or 504", "bad: 500, not 422"} <= said
    assert sum(result["wrong"].values()) == result["requests"]
    assert len(result["faults"]) == len(said) + len(result["never_answered"])


def test_what_should_be_refused_may_not_be_answered_and_a_streams_end_counts_not_its_begin() -> None:
    delta = b"event: delta\ndata: {}\n\n"
    late, broken = (b'event: error\ndata: {"status": %d}\n\n' % status for status in (504, 500))
    result, _ = soaked(200, streams=[delta, delta + late, delta + broken])
    assert "bad: 200, not 422" in result["wrong"]
    streams = {said for said in result["wrong"] if not said.startswith("bad:")}
    assert streams == {"stream: ended without a result, not 200 or 504", "stream: 500, not 200 or 504"}
    assert result["statuses"]["stream 504"] > 0
    assert result["never_answered"] == ["stream"]


def test_answers_that_break_off_are_wrong() -> None:
    result, _ = soaked(200, streams=[b"event: result\ndata: {}\n\n"], missing=1)
    assert {"stream: cut off, not 200 or 504", "translate: cut off, not 200 or 504"} <= set(result["wrong"])
    assert set(result["never_answered"]) == KINDS - {"bad"}


def test_a_service_that_says_nothing_at_the_end_may_have_left_anything() -> None:
    result, _ = soaked(429, dies=True)
    assert (result["rows_left"], result["tokens_left"]) == (None, None)
    assert "what was left when nobody waited is not known: the service gave no figures" in result["faults"]


def test_rows_that_are_left_or_never_full_and_memory_that_grows_are_faults() -> None:
    result, memory = soaked(429, {"rows": 64, "rows_in_use": 3, "waiting_tokens": 0}, grows=10 << 20)
    assert (result["rows_left"], result["tokens_left"]) == (3, 0)
    assert "left when nobody waited: 3 rows, 0 tokens" in result["faults"]
    assert "the service was not full: 3 of 64 rows in use at most" in result["faults"]
    assert memory == sorted(set(memory))
    assert result["growth"] > 0.02
    assert f"memory grew by {result['growth']:.1%}" in result["faults"]


def test_tokens_that_are_left_are_a_fault() -> None:
    result, _ = soaked(429, NOTHING_LEFT | {"waiting_tokens": 17})
    assert (result["rows_left"], result["tokens_left"]) == (0, 17)
    assert "left when nobody waited: 0 rows, 17 tokens" in result["faults"]


@pytest.mark.parametrize("arguments", [["--users", "0"], ["--seconds", "-3"]])
def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "loadtest.soak", "--output", str(tmp_path / "soak"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "soak").exists()
