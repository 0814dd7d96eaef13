"""The command as users run it, in a process of its own: gevent patches whatever imports it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.arrivals import arrivals
from tests.conftest import BASE, SMALL
from tests.loadtest.stub import Stub, served
from tests.service import free_port


def loadtest(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "serving.cli", "loadtest", "--report", str(folder / "report.html"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_loads_a_service_and_reports(service: str, tmp_path: Path) -> None:
    done = loadtest(tmp_path, "--url", service, "--users", "4", "--seconds", "4")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["users"] == 4
    assert figures["requests"] > 0
    assert figures["failures"] == 0
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
    assert figures["rps"] > 0
    assert {"tokenise_ms", "queue_ms", "encode_ms", "decode_ms"} <= set(figures)
    assert 0 < figures["elsewhere_ms"] < figures["p99_ms"]
    assert "<html" in (tmp_path / "report.html").read_text()
    assert "/v1/translate" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("bundle", [[], pytest.param(["--bundle", SMALL], marks=pytest.mark.slow)])
def test_starts_the_default_or_another_and_says_what_that_took(tmp_path: Path, bundle: list[str]) -> None:
    done = loadtest(tmp_path, *bundle, "--port", str(free_port()), "--users", "2", "--seconds", "2")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["requests"] > 0
    assert figures["model"] == (bundle[1] if bundle else BASE)
    assert 1 < figures["first_translation_seconds"] < 120
    assert 200 < figures["memory_mib"] < 4000
    assert f"first translation {figures['first_translation_seconds']} s after the start" in done.stderr


def test_starts_a_service_without_ray_too(tmp_path: Path) -> None:
    arguments = ["--no-ray", "--bundle", SMALL, "--port", str(free_port()), "--users", "2", "--seconds", "2"]
    done = loadtest(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["model"] == SMALL
    assert figures["requests"] > figures["failures"] == 0
    assert "/v1/translate" in done.stderr


def test_arrivals_wait_for_nobody_and_bulk_jobs_go_on_beside_them(service: str, tmp_path: Path) -> None:
    done = loadtest(tmp_path, "--url", service, "--rate", "5", "--seconds", "5", "--shape", "spike", "--bulk", "2")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["rate"], figures["shape"], figures["bulk"], figures["failures"]) == (5, "spike", 2, 0)
    interactive, bulk = figures["kinds"]["interactive"], figures["kinds"]["bulk"]
    assert interactive["requests"] == len(arrivals("spike", 5, 5, seed=0))
    assert bulk["requests"] >= 2
    assert figures["requests"] == interactive["requests"] + bulk["requests"]
    assert 0 < interactive["p50_ms"] <= interactive["p99_ms"]
    assert "bulk" in done.stderr
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bulk", "1"], "--shape and --bulk go with --rate"),
        (["--shape", "ramp"], "--shape and --bulk go with --rate"),
        (["--rate", "0"], "--rate is to be more than 0"),
        (["--shape", "sawtooth", "--rate", "1"], "invalid choice: 'sawtooth'"),
        (["--url", "http://127.0.0.1:1", "--bundle", SMALL], "--bundle is for a service that is started here"),
        (["--url", "http://127.0.0.1:1", "--no-ray"], "--no-ray is for a service that is started here"),
        (["--url", "http://127.0.0.1:1", "--gpus", "1"], "--gpus is for a service that is started here"),
        (["--compare", "--scenarios", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = loadtest(tmp_path, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert said in done.stderr


def test_another_service_on_the_port_is_not_measured_by_mistake(service: str, tmp_path: Path) -> None:
    done = loadtest(tmp_path, "--port", service.rsplit(":", 1)[1], "--seconds", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "name another with --port, or the service there with --url" in done.stderr


class Failing(Stub):
    """A service that is ready and answers every question with 500."""

    def post(self) -> None:
        self.body()
        self.answer(500)


@pytest.fixture
def failing() -> Iterator[str]:
    with served(Failing) as url:
        yield url


def test_failures_make_the_exit_status(failing: str, tmp_path: Path) -> None:
    done = loadtest(tmp_path, "--url", failing, "--users", "1", "--seconds", "1")
    assert done.returncode == 1
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["failures"] == figures["requests"] > 0
    assert "500" in done.stderr


def test_a_rate_at_which_nobody_comes_is_over_at_once_and_no_success(tmp_path: Path) -> None:
    with served(Stub) as url:
        done = loadtest(tmp_path, "--url", url, "--rate", "0.0001", "--seconds", "1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["requests"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--users", "0"], "'0' is not a whole number above 0"),
        (["--url", "http://127.0.0.1:1"], "is not ready"),
        (["--data", "{tmp}/none"], "No such file"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = loadtest(tmp_path, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
