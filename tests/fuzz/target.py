"""The real service, started to be tried."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.servers import START_SECONDS, clean_environment, free_port, wait_until_ready
from tests.fuzz.bodies import MAX_BODY
from tests.fuzz.manners import TIMEOUT
from tests.fuzz.oracle import Limits
from tests.fuzz.valid import MAX_CHARACTERS
from tests.fuzz.watch import Watch

__all__ = ["LIMITS", "Target", "target"]

LIMITS = Limits(timeout=TIMEOUT, hang=20)
"""A machine that does other work too is no fault: what hangs, hangs for longer."""


@dataclass(frozen=True)
class Target:
    """A service that runs."""

    port: int
    watch: Watch
    limits: Limits

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def target(log: Path, bundle: str = "en-de-small") -> Iterator[Target]:
    """``dragoman serve --no-ray`` with small limits, ready; it is ended afterwards. It writes what it says to ``log``."""
    port = free_port()
    limits = {"timeout": LIMITS.timeout, "max-characters": MAX_CHARACTERS, "max-texts": 8, "max-body": MAX_BODY}
    options = [f"--{name}={value:g}" for name, value in limits.items()]
    command = [sys.executable, "-m", "serving.cli", "serve", "--no-ray", "--bundle", bundle, "--port", str(port)]
    with running([*command, *options], port, log) as process:
        yield Target(port, Watch(process.pid, f"http://127.0.0.1:{port}", log), LIMITS)


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A service as a process of its own, ready, which writes what it says to ``log``; it is ended afterwards."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=clean_environment())
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", START_SECONDS, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
