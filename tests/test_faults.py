"""Random faults against the real service: every request ends in an answer or a clean error, none hangs, the service is
whole afterwards, and its memory does not grow.

Twenty of them in ``make test-all``; ``make faults`` plants two hundred.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, SMALL
from tests.processes import alive, family, listening, replicas, within
from tests.service import fetch, free_port, running

pytestmark = pytest.mark.slow

LONGEST = 60.0
"""Seconds that any request may take: the service's own limit is half of it."""
TEXT = "The file could not be opened, because somebody else is using it. "
STAGES = ["encode", "attention", "pool", "store", "search", "beam", "listener", "tokenise", "detokenise"]
"""Where an exception ends one request, or those that are worked on with it."""
GROWTH = 0.02
WARM = 2000
"""Answers until everything has been asked for many times over: what a service holds does not grow then."""


class Service:
    """The real service, with a folder in which faults are planted."""

    def __init__(self, port: int, root: int, planted: Path) -> None:
        self.port, self.root, self.planted = port, root, planted

    def ask(self, path: str, body: dict[str, Any], read: bool = True) -> int | str:
        """The status of an answer; "gone" when the connection broke, as it does when a process dies."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST)
        try:
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            content = answer.read() if read else b""
            if read and answer.status != 200:
                assert json.loads(content)["status"] == answer.status, content
            if read and body.get("stream") and answer.status == 200:
                name, data = content.rstrip().split(b"\n\n")[-1].split(b"\n")
                assert name in (b"event: result", b"event: error"), content
                if name == b"event: error":
                    return int(json.loads(data.removeprefix(b"data: "))["status"])
            return answer.status
        except TimeoutError:
            raise AssertionError(f"{path} hangs") from None
        except (OSError, http.client.HTTPException):
            return "gone"
        finally:
            connection.close()

    def whole(self) -> bool:
        """Whether both replicas listen and the service translates as it should."""
        if [each.port for each in listening(family(self.root))].count(self.port) != 2:
            return False
        with contextlib.suppress(OSError):
            answers = [fetch(f"http://127.0.0.1:{self.port}/v1/translate", REFERENCE) for _ in range(8)]
            return {each.status for each in answers} == {200} and {
                each.json["translations"][0]["text"] for each in answers
            } == {"Die Datei konnte nicht geöffnet werden."}
        return False

    def memory(self) -> int:
        """Bytes that its processes have each for themselves: what they share depends on what else runs."""
        return sum(process.memory_full_info().uss for process in alive(family(self.root)))


REFERENCE = b'{"text": "The file could not be opened."}'
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/translate", {"text": TEXT}),
    ("/v1/translate", {"text": [TEXT * 3, TEXT], "beam_size": 4}),
    ("/v1/translate", {"text": TEXT * 2, "stream": True}),
    ("/v1/translate", {"text": TEXT, "sampling": {"top_k": 256}, "no_repeat_ngram": 1}),
    ("/v1/encode", {"text": TEXT}),
    ("/v1/attention", {"text": TEXT}),
]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", SMALL, "--port", str(port)]
    options = ["--replicas", "2", "--cpus", "1", "--timeout", str(LONGEST / 2), "--rows", "16"]
    planted = {"PYTHONPATH": f"{ROOT / 'tests' / 'planted'}{os.pathsep}{ROOT}", "FAULTS": str(tmp_path)}
    with running([*command, *options], port, **planted) as process:
        found = Service(port, process.pid, tmp_path)
        assert process.stdout
        # One replica answers before the other is there; if that one fails, the service has not started.
        while "  curl " not in process.stdout.readline():
            pass
        assert within(60, found.whole) is not None
        yield found


def exception(service: Service, chance: random.Random) -> str:
    """In the work of one request."""
    stage = chance.choice(STAGES)
    (service.planted / stage).touch()
    return stage


def broken_engine(service: Service, chance: random.Random) -> str:
    """In the step that all share."""
    (service.planted / "step").touch()
    return "step"


def killed_replica(service: Service, chance: random.Random) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        psutil.Process(chance.choice(sorted(replicas(service.root)))).send_signal(signal.SIGKILL)
    return "replica killed"


def closed_socket(service: Service, chance: random.Random) -> str:
    """A client that leaves: in the middle of its request, or without waiting for the answer."""
    body = json.dumps({"text": TEXT * 20, "stream": chance.random() < 0.5}).encode()
    head = f"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(10):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
            client.sendall((head + body)[: chance.choice([10, len(head), len(head) + 100, len(head) + len(body)])])
            if chance.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
    return "sockets closed"


def slow_reader(service: Service, chance: random.Random) -> str:
    """A client that takes its answer a little at a time, and one that sends its request so."""
    body = json.dumps({"text": [TEXT] * 30, "stream": True}).encode()
    head = f"POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow = chance.random() < 0.5
        for begin in range(0, len(head + body), 400 if slow else 10**6):
            client.sendall((head + body)[begin : begin + (400 if slow else 10**6)])
            time.sleep(0.05 if slow else 0)
        for _ in range(20):
            client.recv(100)
            time.sleep(0.05)
    return "slow reader"


Fault = Callable[[Service, random.Random], str]
HARMLESS: list[Fault] = [exception, exception, closed_socket, slow_reader]
"""After which both replicas are there: four of five faults, and those that memory must not grow by.

The work that an exception ends may be that of a client that has left, and then nobody is told of it. So those that must
be told are planted on their own.
"""
DEADLY: list[Fault] = [broken_engine, killed_replica]
TOGETHER = 6
"""Requests that one fault may end: there are as many clients."""


@contextlib.contextmanager
def clients(service: Service, seed: int) -> Iterator[Counter[int | str]]:
    """Six that ask one thing after another, and how that ended."""
    ends: Counter[int | str] = Counter()
    over = threading.Event()

    def ask(number: int) -> None:
        choices = random.Random(seed + number)
        while not over.is_set():
            path, body = choices.choice(REQUESTS)
            end = service.ask(path, body)
            ends[end] += 1
            time.sleep(0.1 if end == "gone" else 0)

    with ThreadPoolExecutor(TOGETHER) as threads:
        asking = [threads.submit(ask, number) for number in range(TOGETHER)]
        try:
            yield ends
        finally:
            over.set()
        for each in asking:
            each.result(timeout=2 * LONGEST)


def plant(service: Service, kinds: list[Fault], count: int, chance: random.Random, ends: Counter[int | str]) -> int:
    """Plant ``count`` faults one after another; returns how many were exceptions in the work of one request."""
    exceptions = 0
    for number in range(1, count + 1):
        kind = chance.choice(kinds)
        found = kind(service, chance)
        exceptions += kind is exception
        print(f"{number} of {count}: {found}; so far {dict(ends)}", flush=True)
        time.sleep(chance.uniform(0.2, 1.5))
        if kind in DEADLY:
            assert within(90, service.whole) is not None, f"not whole after {found}"
        assert within(30, lambda: not any(service.planted.iterdir())) is not None, f"{found} was never met"
    return exceptions


def test_random_faults_harm_nobody_else(service: Service, pytestconfig: pytest.Config) -> None:
    count, seed = pytestconfig.getoption("--faults"), pytestconfig.getoption("--seed")
    chance, deadly = random.Random(seed), count // 5
    with clients(service, seed) as ends:
        assert within(300, lambda: ends[200] > WARM) is not None
        before = service.memory()
        told = plant(service, [exception], deadly, chance, ends)
        time.sleep(2)
        assert told <= ends[500] <= TOGETHER * told
        exceptions = told + plant(service, HARMLESS, count - 2 * deadly, chance, ends)
        time.sleep(2)
        after = service.memory()
    print(
        f"{dict(ends)}; memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} after ({after / before - 1:+.1%})"
    )
    assert service.whole()
    assert set(ends) <= {200, 500}
    assert ends[500] <= TOGETHER * exceptions
    assert after < (1 + GROWTH) * before
    with clients(service, seed) as ends:
        plant(service, DEADLY, deadly, chance, ends)
    print(f"{dict(ends)} beside those that end a replica")
    assert set(ends) <= {200, 503, "gone"}
    assert ends[503] + ends["gone"] <= 2 * TOGETHER * deadly
    assert ends[200] > 10 * deadly
    assert service.whole()
