"""The service without Ray; how both end is in test_stopping.py."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import ROOT, SMALL
from tests.processes import alive, family, listening
from tests.service import dragoman, fetch, free_port, running, started


@pytest.fixture(scope="module")
def process(without_ray: str) -> Iterator["subprocess.Popen[str]"]:
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--no-ray", "--bundle", SMALL, "--port", str(port)]
    with running(command, port, PYTHONPATH=without_ray) as found:
        yield found


@pytest.fixture(scope="module")
def url(process: "subprocess.Popen[str]") -> str:
    [only] = listening(family(process.pid))
    return f"http://127.0.0.1:{only.port}"


def test_the_block_works(without_ray: str) -> None:
    done = dragoman("serve", "--bundle", SMALL, "--port", str(free_port()), PYTHONPATH=without_ray)
    assert done.returncode == 1
    assert done.stderr.decode() == "Ray is not installed: install it, or serve without it: --no-ray\n"


def test_everything_is_answered_where_ray_is_not_installed(url: str, process: "subprocess.Popen[str]") -> None:
    translated = fetch(f"{url}/v1/translate", b'{"text": "The file could not be opened.", "beam_size": 4}')
    assert translated.json["translations"][0]["text"] == "Die Datei konnte nicht geöffnet werden."
    assert {"tokenise", "queue", "encode", "decode", "total"} <= set(translated.stages)
    for route in ("encode", "attention"):
        assert fetch(f"{url}/v1/{route}", b'{"text": "Open the file."}').status == 200
    for route in ("healthz", "readyz", "v1/models", "openapi.json"):
        assert fetch(f"{url}/{route}").status == 200
    assert f'process="{process.pid}"' in fetch(f"{url}/metrics").content.decode()


def test_a_stream_adds_up_to_the_translation(url: str) -> None:
    answer = fetch(f"{url}/v1/translate", b'{"text": "The file could not be opened.", "stream": true}')
    events = [part.split("\ndata: ") for part in answer.content.decode().strip().split("\n\n")]
    said = "".join(json.loads(data)["text"] for name, data in events if name == "event: delta")
    assert said == json.loads(events[-1][1])["translations"][0]["text"] == "Die Datei konnte nicht geöffnet werden."


def test_what_is_too_much_is_a_problem_that_names_the_limit(url: str) -> None:
    answer = fetch(f"{url}/v1/translate", json.dumps({"text": ["One."] * 1001}).encode())
    assert (answer.status, answer.json["limit"], answer.json["size"]) == (413, 1000, 1001)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_it_is_one_process_with_one_port_on_loopback(process: "subprocess.Popen[str]") -> None:
    assert len(family(process.pid)) == 1
    [only] = listening(family(process.pid))
    assert only.loopback


def test_a_second_copy_on_its_port_is_told_in_one_line(url: str) -> None:
    for copy in ([], ["--no-ray"]):
        done = dragoman("serve", *copy, "--bundle", SMALL, "--port", str(urlsplit(url).port))
        assert done.returncode == 1
        assert done.stderr.decode().count("\n") == 1
        assert "Address already in use; choose another address with --host or --port" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--replicas", "2"], {}, "max_replicas is 2, and without Ray there is one replica: set it to 1"),
        ([], {"DRAGOMAN_MAX_REPLICAS": "3"}, "max_replicas is 3, and without Ray there is one replica: set it to 1"),
        (["--ingress", "serve"], {}, "ingress is serve, and without Ray there are no proxies: set it to direct"),
    ],
)
def test_what_needs_ray_is_refused_in_one_line(arguments: list[str], variables: dict[str, str], said: str) -> None:
    done = dragoman("serve", "--no-ray", *arguments, "--port", str(free_port()), **variables)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"{said}, or leave out --no-ray\n"


def test_a_replica_that_cannot_start_is_told_in_the_line_that_ray_would_give(tiny_bundle: Path, tmp_path: Path) -> None:
    """As in test_verify.py: one of the probes has another token."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in tiny_bundle.iterdir():
        os.link(file, bundle / file.name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["probes"]["probes"][1]["tokens"][0] += 1
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = dragoman("serve", "--no-ray", "--bundle", bundle, "--port", str(free_port()))
    assert done.returncode == 1
    assert done.stdout.decode().startswith("starting tiny (fp32): 1 replica of ")
    assert done.stdout.decode().count("\n") == 1
    assert done.stderr.decode().startswith("no replica could start: on this computer it is wrong: ")
    assert done.stderr.decode().count("\n") == 1


@pytest.mark.slow
def test_what_has_come_is_answered_after_a_signal_that_comes_twice(tiny_bundle: Path) -> None:
    """As it does when a terminal sends it to everybody and a parent passes it on."""
    with started(tiny_bundle, "--no-ray", "--cpus", "1") as service, ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(service.translate, "Hello there. " * 400, ', "min_tokens": 60') for _ in range(3)]
        time.sleep(0.3)
        assert not any(each.done() for each in asked)
        for _ in range(2):
            service.process.send_signal(signal.SIGTERM)
        said, _ = service.process.communicate(timeout=60)
        assert [each.result().status for each in asked] == [200] * 3
        assert (service.process.returncode, said.split()) == (0, ["stopped"])


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.8])
def test_a_signal_during_the_start_ends_it(tiny_bundle: Path, seconds: float) -> None:
    with started(tiny_bundle, "--no-ray", wait=False) as service:
        assert service.process.stdout
        assert service.process.stdout.readline().startswith("starting tiny")
        time.sleep(seconds)
        service.process.send_signal(signal.SIGINT)
        said, _ = service.process.communicate(timeout=60)
        assert service.process.returncode == 0
        assert said.splitlines()[-1] == "stopped"
        assert "Traceback" not in said


def test_killed_it_leaves_no_process_and_no_port_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    """Only its private state folder, which nobody else can enter."""
    with started(tiny_bundle, "--no-ray", TMPDIR=str(tmp_path), HOME="/proc/none") as service:
        every = family(service.process.pid)
        service.process.kill()
        service.process.communicate(timeout=60)
        assert alive(every) == []
        [left] = tmp_path.iterdir()
        assert stat.S_IMODE(left.stat().st_mode) == 0o700
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", service.port))


def test_it_ends_with_its_engine_and_says_so_in_the_last_line(tiny_bundle: Path, tmp_path: Path) -> None:
    planted = {"PYTHONPATH": f"{ROOT / 'tests' / 'planted'}:{ROOT}", "FAULTS": str(tmp_path)}
    with started(tiny_bundle, "--no-ray", "--cpus", "1", **planted) as service:
        assert service.translate().status == 200
        (tmp_path / "step").touch()
        assert service.translate().status == 503
        said, _ = service.process.communicate(timeout=60)
        assert service.process.returncode == 1
        last = "the engine has ended, and the service with it (Planted: step): start it again"
        assert said.splitlines()[-1] == last


def test_ray_is_not_imported_where_it_is_installed(tiny_bundle: Path) -> None:
    """Its library would be among the files that the process has mapped."""
    with started(tiny_bundle, "--no-ray") as service:
        mapped = {each.path for each in psutil.Process(service.process.pid).memory_maps()}
        assert any("onnxruntime" in path for path in mapped)
        assert not any("/ray/" in path for path in mapped)
