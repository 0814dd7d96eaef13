"""Services as processes: started, asked whether they are ready, watched, stopped."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

START_SECONDS = 180.0


class StartFailed(RuntimeError):
    """A service ended, or was not ready in time."""


class Usage(NamedTuple):
    """What a service and its processes have used."""

    cpu_seconds: float
    memory_bytes: int
    """Of all its processes, what they share counted once (Linux: PSS)."""


@dataclass(frozen=True)
class Server:
    """A service that runs."""

    url: str
    process: "subprocess.Popen[bytes]"

    def usage(self) -> Usage:
        """Up to now, of the processes that are alive."""
        root = psutil.Process(self.process.pid)
        seconds, memory = 0.0, 0
        for process in [root, *root.children(recursive=True)]:
            try:
                times, full = process.cpu_times(), process.memory_full_info()
            except psutil.Error:
                continue  # it has just ended
            seconds += times.user + times.system
            memory += getattr(full, "pss", full.rss)
        return Usage(seconds, memory)

    def listening(self) -> set[int]:
        """Its processes that take connections now: replicas that are ready and not about to end."""
        port, found = urlsplit(self.url).port, set()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                connections = process.net_connections("tcp")
            except psutil.Error:
                continue  # it has just ended
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections):
                found.add(process.pid)
        return found


def free_port() -> int:
    """One on which nobody listens now, drawn from those that the system and Ray give nobody in the meantime."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(**more: str) -> dict[str, str]:
    """This process's variables and ``more``, without settings: a service that is started has those that are stated."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("DRAGOMAN_")} | more


@contextmanager
def dragoman(port: int, *arguments: str) -> Iterator[Server]:
    """This service on ``port``, with ``arguments`` of `dragoman serve`; StartFailed when another listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            # Else what runs there would be measured in place of ours.
            said = f"port {port}: {error.strerror}; name another with --port, or the service there with --url"
            raise StartFailed(said) from None
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with running(command, f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def running(command: Sequence[str], url: str, folder: str | None = None, **environment: str) -> Iterator[Server]:
    """``command`` as a service at ``url`` that answers ``/readyz`` with 200; it and its processes end afterwards.

    It runs in ``folder``, this process's own unless given, and finds the variables of ``environment`` besides this
    process's. Raises StartFailed with what it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env=clean_environment(**environment),
        )
        try:
            wait_until_ready(f"{url}/readyz", START_SECONDS, process)
            yield Server(url, process)
        except StartFailed as failure:
            said.seek(0)
            raise StartFailed(f"{failure}: {said.read().decode(errors='replace').strip()}") from None
        finally:
            _stop(process)


def wait_until_ready(url: str, seconds: float, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Return when ``url`` answers 200; StartFailed when it does not within ``seconds`` or ``process`` has ended."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
                reason = str(answer.status)
        except (urllib.error.URLError, OSError) as error:
            reason = str(error)
        if process and process.poll() is not None:
            raise StartFailed("the service did not start")
        if time.monotonic() > deadline:
            raise StartFailed(f"{url} is not ready: {reason}")
        time.sleep(0.1)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C would, so that what it has started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End ``process``, and whatever of its session outlives it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
