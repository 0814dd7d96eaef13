"""The service on a planted GPU: what Ray and Serve make of ``gpus``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.servers import clean_environment
from tests.conftest import ROOT
from tests.processes import within
from tests.service import fetch, free_port, running


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, str]:
    """The variables with which a service finds a GPU."""
    folder = tmp_path / "gpus"
    folder.mkdir()
    return {"GPUS": str(folder), "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "planted_gpu"), str(ROOT)])}


def serve(bundle: Path, port: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(bundle), "--port", str(port)]
    return [*command, "--cpus", "1", *options]


@pytest.mark.slow
def test_two_replicas_share_a_gpu_and_its_memory(lively_bundle: Callable[..., Path], planted: dict[str, str]) -> None:
    port = free_port()
    command = serve(lively_bundle("fp16"), port, "--gpus", "0.5", "--replicas", "2")
    with running(command, port, **planted) as process:
        assert process.stdout
        assert process.stdout.readline().endswith(": 2 replicas of 1 core on 1 GPU\n")
        assert fetch(f"http://127.0.0.1:{port}/v1/translate", b'{"text": "Hello."}').status == 200
        found = Path(planted["GPUS"])
        # One is ready before the other.
        assert within(60, lambda: len(list(found.iterdir())) == 2) is not None
        first, second = (each.read_text().split() for each in found.iterdir())
    assert first == second
    visible, graph, arrays = first
    assert visible == "0"
    # Five graphs, and arrays for which twice as much may be taken.
    assert 0 < 2 * (5 * int(graph) + 2 * int(arrays)) < 80 << 30


@pytest.mark.slow
def test_a_gpu_whose_memory_is_full_is_one_line(lively_bundle: Callable[..., Path], planted: dict[str, str]) -> None:
    (Path(planted["GPUS"]) / "full").touch()
    command = serve(lively_bundle("fp16"), free_port(), "--gpus", "1")
    done = subprocess.run(command, env=clean_environment(**planted), capture_output=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.decode().startswith("no replica could start: the GPU's memory is full")


def test_more_gpus_than_there_are_are_refused_before_ray_starts(
    lively_bundle: Callable[..., Path], planted: dict[str, str]
) -> None:
    command = serve(lively_bundle("fp16"), free_port(), "--gpus", "0.5", "--max-replicas", "3")
    done = subprocess.run(command, env=clean_environment(**planted), capture_output=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().startswith("the replicas take 2 GPUs, and this process may use 1: ")
