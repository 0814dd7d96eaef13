"""How a service ends, and how a replica does whose engine has broken."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import alive, family, kill, listening, within
from tests.service import started

pytestmark = pytest.mark.slow


WITH_AND_WITHOUT_RAY = pytest.mark.parametrize("ray", [[], ["--no-ray"]], ids=["on Ray", "without"])


@WITH_AND_WITHOUT_RAY
def test_a_signal_to_every_process_ends_it_as_one_to_the_first_does(tiny_bundle: Path, ray: list[str]) -> None:
    """As a service manager sends it: what is under way is still answered."""
    with started(tiny_bundle, *ray, "--rows", "16", "--cpus", "1") as service, ThreadPoolExecutor(6) as threads:
        every = family(service.process.pid)
        under_way = [threads.submit(service.translate, "Hello there. " * 150, ', "min_tokens": 60') for _ in range(6)]
        time.sleep(1)
        assert not any(each.done() for each in under_way)
        kill(every, signal.SIGTERM)
        said, _ = service.process.communicate(timeout=60)
        assert [each.result().status for each in under_way] == [200] * 6
        assert service.process.returncode == 0
        assert said.split() == ["stopped"]
        assert alive(every) == []


@WITH_AND_WITHOUT_RAY
def test_without_work_that_takes_seconds(tiny_bundle: Path, ray: list[str]) -> None:
    with started(tiny_bundle, *ray) as service:
        every = family(service.process.pid)
        kill(every, signal.SIGTERM)
        said, _ = service.process.communicate(timeout=60)
        assert (service.process.returncode, said.split(), alive(every)) == (0, ["stopped"], [])


@WITH_AND_WITHOUT_RAY
def test_a_second_signal_ends_everything_at_once(tiny_bundle: Path, ray: list[str]) -> None:
    with started(tiny_bundle, *ray, "--cpus", "1") as service, ThreadPoolExecutor(1) as threads:
        every = family(service.process.pid)
        hanging = threads.submit(service.translate, "Hello there. " * 1500, ', "min_tokens": 100')
        time.sleep(1)
        service.process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGINT)
        said, _ = service.process.communicate(timeout=60)
        assert service.process.returncode == 128 + signal.SIGINT
        assert (said.strip(), alive(every)) == ("", [])
        assert hanging.exception() is not None


@pytest.mark.parametrize("seconds", [1.5, 3.5, 6.0])
def test_a_signal_to_every_process_during_the_start_ends_it(tiny_bundle: Path, seconds: float) -> None:
    with started(tiny_bundle, wait=False) as service:
        time.sleep(seconds)
        every = family(service.process.pid)
        kill(every, signal.SIGTERM)
        said, _ = service.process.communicate(timeout=60)
        assert service.process.returncode in (0, -signal.SIGTERM), said  # that one before Python has a say
        assert "Traceback" not in said
        assert within(5, lambda: not alive(every)) is not None


def test_a_replica_whose_engine_breaks_stops_listening_and_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    """Clients are told 503 or refused in the meantime; none hangs, none is told anything wrong."""
    planted = {"PYTHONPATH": f"{ROOT / 'tests' / 'planted'}:{ROOT}", "FAULTS": str(tmp_path)}
    with started(tiny_bundle, "--cpus", "1", **planted) as service:
        root = service.process.pid
        before = {each.pid for each in family(root)}
        assert service.translate().status == 200
        (tmp_path / "step").touch()
        assert service.translate().status == 503
        at = time.monotonic()

        def listens() -> bool:
            return any(each.port == service.port for each in listening(family(root)[1:]))

        assert within(5, lambda: not listens(), 0.01) is not None
        gone = time.monotonic() - at
        assert within(10, lambda: {each.pid for each in family(root)} - before, 0.01) is not None
        requested = time.monotonic() - at
        print(f"stopped listening after {gone:.2f} s; a process for its successor was there after {requested:.2f} s")
        statuses = set()
        while (now := time.monotonic() - at) < 60:
            try:
                statuses.add(service.translate().status)
            except (OSError, ConnectionError):
                statuses.add(503)
            if 200 in statuses:
                break
            time.sleep(0.1)
        assert statuses <= {200, 503}
        assert 200 in statuses, f"not whole after {now:.0f} s"
        assert not (tmp_path / "step").exists()
        with socket.create_connection(("127.0.0.1", service.port), timeout=5):
            pass
        service.process.send_signal(signal.SIGTERM)
        said, _ = service.process.communicate(timeout=60)
        assert (service.process.returncode, said.split()[-1]) == (
            0,
            "stopped",
        )  # Ray has its say about the one that died
