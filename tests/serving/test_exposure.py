"""What a service shows to others: its own port, where ``--host`` says so, and nothing else."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import SMALL
from tests.processes import alive, family, listening
from tests.service import dragoman, fetch, free_port, running


@pytest.fixture(scope="module")
def processes(service: str) -> list[psutil.Process]:
    """Those of the service."""
    port = str(urlsplit(service).port)
    [root] = (
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if "serve" in (each.info["cmdline"] or []) and port in each.info["cmdline"]
    )
    return family(root)


def other_addresses() -> list[str]:
    """This machine's, but for loopback."""
    every = [
        each.address for found in psutil.net_if_addrs().values() for each in found if each.family == socket.AF_INET
    ]
    return [address for address in every if not address.startswith("127.")]


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def test_every_port_is_on_loopback_and_none_answers_elsewhere(service: str, processes: list[psutil.Process]) -> None:
    found = listening(processes)
    assert urlsplit(service).port in {each.port for each in found}
    assert len(found) > 4
    assert [each for each in found if not each.loopback] == []
    for address in other_addresses():
        assert [each for each in found if answers(address, each.port)] == []


def test_no_process_is_there_that_no_service_needs(processes: list[psutil.Process]) -> None:
    commands = [" ".join(process.cmdline()) for process in processes]
    for unneeded in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py", "IDLE"):
        assert [command for command in commands if unneeded in command] == []
    assert len(commands) <= 7


def test_ray_asks_for_a_fresh_token_that_only_this_user_can_read(processes: list[psutil.Process]) -> None:
    for process in processes:
        if "ServeReplica" not in " ".join(process.cmdline()):
            continue
        variables = process.environ()
        assert variables["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in variables
        token = Path(variables["RAY_AUTH_TOKEN_PATH"])
        assert Path.home() not in token.parents
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
        assert len(token.read_text()) == 64
        break
    else:
        pytest.fail("there is no replica")


@pytest.mark.slow
def test_with_a_host_of_its_own_the_services_port_answers_there_and_no_other(tiny_bundle: Path) -> None:
    """And a token that was given, or a wish for none, makes no difference."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    given = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "constant"}
    with running([*command, "--host", "0.0.0.0"], port, **given) as process:
        found = family(process.pid)
        assert {each.port for each in listening(found) if not each.loopback} == {port}
        for address in other_addresses():
            assert {each.port for each in listening(found) if answers(address, each.port)} == {port}
        tokens = {each.environ().get("RAY_AUTH_TOKEN_PATH") for each in alive(found[1:])} - {None}
        assert len(tokens) == 1
        assert Path(str(tokens.pop())).read_text() != "constant"


@pytest.mark.slow
def test_an_ipv6_address_is_told_as_a_url_that_curl_takes(tiny_bundle: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    process = subprocess.Popen([*command, "--host", "::1"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[1] == f"ready on http://[::1]:{port}; try\n"
        url = lines[3].split()[1]
        assert url == f"http://[::1]:{port}/v1/translate"
        assert fetch(url, b'{"text": "Hello."}').status == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_ipv6_port_that_is_taken_is_told_so_too() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = dragoman("serve", "--host", "::1", "--port", str(port))
    assert done.stderr.decode().startswith(f"cannot listen on [::1]:{port}: Address already in use")


# Homes and temporary folders.


@pytest.mark.slow
def test_a_service_needs_no_home_that_can_be_written_to_and_little_shared_memory(tiny_bundle: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    with running(command, port, HOME="/proc/none"):
        assert fetch(f"http://127.0.0.1:{port}/v1/translate", b'{"text": "Hello."}').status == 200


def test_a_temporary_folder_that_cannot_be_written_to_is_one_line_that_says_what_to_set() -> None:
    done = dragoman("serve", "--bundle", SMALL, "--port", str(free_port()), RAY_TMPDIR="/proc")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "cannot write to /proc" in done.stderr.decode()
    assert "set RAY_TMPDIR to a folder" in done.stderr.decode()
    done = dragoman("serve", "--bundle", SMALL, "--port", str(free_port()), RAY_TMPDIR="/tmp/" + "long" * 9)
    assert done.stderr.decode() == "RAY_TMPDIR has 41 bytes; the limit is 20, for the paths of Ray's sockets\n"


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> None:
    folder, port = Path(f"/tmp/d{os.getpid()}"), free_port()  # short, as the paths of sockets must be
    folder.mkdir()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(tiny_bundle), "--port", str(port)]
    try:
        with running(command, port, TMPDIR=str(folder)):
            assert [each.name.startswith("dragoman-") for each in folder.iterdir()] == [True]
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()
