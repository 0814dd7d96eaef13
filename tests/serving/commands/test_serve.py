import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service import dragoman, free_port


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--bundle", "{tmp}/none"], {}, "manifest.json is missing"),
        (["--rows", "0"], {}, "setting rows: Input should be greater than 0, not 0"),
        ([], {"DRAGOMAN_PORT": "abc"}, "setting port: "),
        ([], {"DRAGOMAN_PROT": "1"}, "unknown in the environment: DRAGOMAN_PROT"),
        (["--gpus", "2"], {}, "setting gpus: must be 0, or from 0.01 to 1: a replica computes on one GPU"),
        (
            ["--gpus", "1"],
            {},
            "is in int8, which is for the CPU: export one for the GPU with dragoman export en-de-base",
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_message(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = dragoman("translate", *arguments, given=b"One.\n", **environment)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_without_a_bundle_for_gpus_they_are_refused_with_the_command_that_makes_one() -> None:
    done = dragoman("serve", "--gpus", "1", "--port", free_port())
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().count("\n") == 1
    assert "with dragoman export en-de-base FOLDER --precision fp16" in done.stderr.decode()


def test_a_second_copy_on_a_port_is_told_in_one_line(service: str) -> None:
    done = dragoman("serve", "--port", service.rsplit(":", 1)[1])
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "Address already in use; choose another address with --host or --port" in done.stderr.decode()


def test_a_signal_during_the_start_ends_it(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(free_port()), "--bundle", str(tiny_bundle)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    assert "starting tiny" in process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said
