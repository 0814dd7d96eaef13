"""Several replicas of the real service, each a process that listens on the service's port itself."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.figures import figures, processes
from tests.service import free_port, running

TEXT = "The file could not be opened."


def command(port: int, bundle: Path, *arguments: str) -> list[str]:
    given = ["--port", str(port), "--bundle", str(bundle), "--cpus", "1", *arguments]
    return [sys.executable, "-m", "serving.cli", "serve", *given]


def translate(port: int, text: str = TEXT, **options: object) -> int:
    """The status of the answer, over a connection of its own; checks that it is one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/translate", json.dumps({"text": text} | options))
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status != 200 or len(content["translations"]) == 1
        return answer.status
    finally:
        connection.close()


def seen(port: int) -> set[int]:
    """The replicas that have become ready and live, as whoever answers says."""
    try:
        return processes(f"http://127.0.0.1:{port}")
    except OSError:
        return set()


def within(seconds: float, met: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if met():
            return True
        time.sleep(0.3)
    return False


@contextmanager
def clients(port: int, count: int, text: str = TEXT) -> Iterator[list[int | OSError]]:
    """That many ask one thing after another; what came of it, statuses or failed connections."""
    found: list[int | OSError] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                found.append(translate(port, text))
            except (http.client.RemoteDisconnected, ConnectionError) as error:
                found.append(error)

    with ThreadPoolExecutor(count) as threads:
        asking = [threads.submit(ask) for _ in range(count)]
        try:
            yield found
        finally:
            over.set()
    for each in asking:
        each.result()


def said_at_the_end(process: "subprocess.Popen[str]", stop: signal.Signals) -> list[str]:
    """Stop a service: the lines that it writes after it is ready. Checks that it ends well."""
    assert process.stdout
    lines = iter(process.stdout)
    while not next(lines).startswith("  curl http://127.0.0.1:"):
        pass
    process.send_signal(stop)
    said = [line.strip() for line in lines if line.strip()]
    assert process.wait(60) == 0
    return said


@pytest.mark.slow
def test_a_replica_that_dies_costs_its_connections_only_and_a_stop_costs_nothing(tiny_bundle: Path) -> None:
    port = free_port()
    with running(command(port, tiny_bundle, "--replicas", "2", "--queue-tokens", "1000000"), port) as process:
        # Ready is who has come first.
        assert within(60, lambda: len(seen(port)) == 2)
        both = seen(port)
        victim = min(both)
        with clients(port, 4) as found:
            assert within(20, lambda: len(found) > 40)
            os.kill(victim, signal.SIGKILL)
            assert within(5, lambda: seen(port) == both - {victim})
            gone = len(found)
            assert within(20, lambda: len(found) > gone + 40)
            assert within(60, lambda: len(seen(port)) == 2)
        assert {each for each in found if isinstance(each, int)} == {200}
        # What was under way in the one that died, and what came while the kernel closed its sockets.
        assert set(found[gone:]) == {200}
        assert gone - found[:gone].count(200) <= 12
        assert victim not in seen(port)

        with ThreadPoolExecutor(8) as threads:
            late = [threads.submit(translate, port, "Hello there. " * 250, min_tokens=60) for _ in range(8)]
            time.sleep(0.5)
            assert not any(each.done() for each in late)
            # Ray has its say about the one that died.
            assert said_at_the_end(process, signal.SIGTERM)[-1] == "stopped"
            assert [each.result() for each in late] == [200] * 8
    with pytest.raises(OSError, match="refused"):
        translate(port)


@contextmanager
def connected(port: int, process: int) -> Iterator[http.client.HTTPConnection]:
    """A connection that stays open, to the replica in ``process``."""
    for _ in range(60):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            asked(connection, "/readyz")
            own = connection.sock.getsockname()[1]
            if own in {each.raddr.port for each in psutil.Process(process).net_connections("tcp") if each.raddr}:
                yield connection
                return
    raise AssertionError("the kernel never chose it")


def asked(connection: http.client.HTTPConnection, path: str, body: dict[str, object] | None = None) -> bytes:
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200
    return content


def total(connection: http.client.HTTPConnection, name: str) -> float:
    """A counter, as the replica at the other end says it."""
    families = text_string_to_metric_families(asked(connection, "/metrics").decode())
    [value] = [
        sample.value for family in families for sample in family.samples if sample.name == f"dragoman_{name}_total"
    ]
    return value


@pytest.mark.slow
def test_what_one_replica_has_done_the_next_request_to_the_other_sees_and_death_takes_nothing(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port, state = free_port(), tmp_path / "state"
    arguments = ["--replicas", "2", "--state", str(state)]
    with running(command(port, tiny_bundle, *arguments), port), ExitStack() as open_connections:
        assert within(60, lambda: len(seen(port)) == 2)
        victim, survivor = sorted(seen(port))
        one, other = (open_connections.enter_context(connected(port, each)) for each in (victim, survivor))
        for number in range(1, 31):
            before = total(other, "source_tokens")
            answer = json.loads(asked(one, "/v1/encode", {"text": "One more cat. " * (number % 10 + 1)}))
            after = total(other, "source_tokens")
            assert after - before == len(answer["encodings"][0]["tokens"])
            one, other = other, one
        whole = total(one, "source_tokens")
        os.kill(victim, signal.SIGKILL)
        assert within(5, lambda: seen(port) == {survivor})
        left = open_connections.enter_context(connected(port, survivor))
        assert total(left, "source_tokens") == whole
        # Its successor folds its file, and takes its own first steps.
        assert within(60, lambda: len(seen(port)) == 2)
        assert total(left, "source_tokens") > whole
        whole = total(left, "source_tokens")
    with running(command(port, tiny_bundle, *arguments), port):
        assert figures(f"http://127.0.0.1:{port}")["source_tokens_total"] > whole


@pytest.mark.slow
def test_replicas_come_with_the_load_and_go_after_it(tiny_bundle: Path) -> None:
    port = free_port()
    scale = {
        "replicas": 1,
        "max-replicas": 2,
        "scale-up-seconds": 2,
        "scale-down-seconds": 5,
        "target-load": 0.1,
        "rows": 16,
    }
    arguments = [part for name, value in scale.items() for part in (f"--{name}", str(value))]
    with running(command(port, tiny_bundle, *arguments), port) as process:
        assert len(seen(port)) == 1
        with clients(port, 6, TEXT * 4) as found:
            assert within(60, lambda: len(seen(port)) == 2)
            first_answers = len(found)
            assert within(30, lambda: len(found) > first_answers + 40)
        with clients(port, 1) as trickle:
            assert within(90, lambda: len(seen(port)) == 1)
        assert set(found) == {200}
        assert set(trickle) == {200}
        assert said_at_the_end(process, signal.SIGINT) == ["stopped"]


@pytest.mark.slow
def test_with_serve_as_ingress_its_proxy_answers(tiny_bundle: Path) -> None:
    port = free_port()
    with running(command(port, tiny_bundle, "--ingress", "serve"), port) as process:
        assert translate(port) == 200
        assert len(seen(port)) == 1
        assert said_at_the_end(process, signal.SIGTERM) == ["stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("ingress", ["direct", "serve"])
def test_clients_cannot_switch_serves_time_outs_off_or_on(tiny_bundle: Path, ingress: str) -> None:
    port = free_port()
    arguments = ["--ingress", ingress, "--queue-tokens", "10000000"]
    with running(command(port, tiny_bundle, *arguments), port):
        url = f"http://127.0.0.1:{port}"
        hasty = urllib.request.Request(
            f"{url}/v1/translate",
            json.dumps({"text": ["Hello there. " * 8] * 50, "min_tokens": 60}).encode(),
            {"x-request-timeout-seconds": "0.001"},
        )
        with urllib.request.urlopen(hasty, timeout=60) as answer:
            assert answer.status == 200
        for given in ("abc", "a\xffb"):
            named = urllib.request.Request(f"{url}/v1/models", headers={"X-Request-Id": given})
            with urllib.request.urlopen(named, timeout=60) as answer:
                [request_id] = answer.headers.get_all("X-Request-Id")
            assert (request_id == given) == (given == "abc")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        long = {"text": ["Hello there. " * 20] * 1000, "min_tokens": 100, "beam_size": 4}
        connection.request("POST", "/v1/translate", json.dumps(long), {"x-request-disconnect-disabled": "?1"})
        assert within(30, lambda: figures(url)["rows_in_use"] > 0)
        connection.close()
        # The whole of it would take minutes.
        assert within(10, lambda: figures(url)["rows_in_use"] == 0)
