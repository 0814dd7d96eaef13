"""Starting the real service and speaking HTTP to it, and running the command, for tests."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest.servers import StartFailed, clean_environment, free_port, wait_until_ready
from tests.processes import family, kill

__all__ = ["Answer", "Service", "dragoman", "fetch", "free_port", "running", "started"]


@contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A service as a process of its own, ready; stopped at the end."""
    variables = clean_environment(**environment)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", 120, process)
        yield process
    except StartFailed as failure:
        process.terminate()
        raise StartFailed(f"{failure}: {process.communicate(timeout=60)[0]}") from None
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            kill(family(process.pid), signal.SIGKILL)
            process.wait()
        if process.stdout:
            process.stdout.close()


class Service:
    """A real service and what it says."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}"

    def translate(self, text: str = "The file could not be opened.", more: str = "") -> "Answer":
        return fetch(f"{self.url}/v1/translate", f'{{"text": "{text}"{more}}}'.encode())


@contextmanager
def started(bundle: Path, *arguments: str, wait: bool = True, **environment: str) -> Iterator[Service]:
    """``dragoman serve`` of its own, which has said that it is ready; killed at the end unless it has ended."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", str(bundle), "--port", str(port)]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(**environment),
    )
    found = Service(process, port)
    try:
        if wait:
            assert process.stdout
            while "  curl " not in (line := process.stdout.readline()):
                assert line, "it has not started"
        yield found
    finally:
        if process.poll() is None:
            kill(family(process.pid), signal.SIGKILL)
        process.communicate()


class Answer:
    """Status, headers and body of an HTTP answer."""

    def __init__(self, status: int, headers: Any, content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def stages(self) -> dict[str, float]:
        found = re.findall(r"([\w-]+);dur=([\d.]+)", self.headers.get("Server-Timing", ""))
        return {name: float(value) for name, value in found}


def fetch(url: str, content: bytes | None = None, method: str | None = None) -> Answer:
    request = urllib.request.Request(url, content, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def dragoman(*arguments: str | Path, given: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the command to its end."""
    command = [sys.executable, "-m", "serving.cli", *map(str, arguments)]
    return subprocess.run(
        command, input=given, capture_output=True, env=clean_environment(**environment), timeout=300, check=False
    )
