"""Versions of this repository, each in a checkout of its own, and their services side by side."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.servers import Server, StartFailed, clean_environment, free_port, running

IDLE = Path(__file__).with_name("idle")
"""The folder whose `sitecustomize` makes an engine compute nothing."""
OURS = ("model", "export", "serving")
LOADED = f"""
import sys, serving.service
for name, module in sys.modules.items():
    if name.partition(".")[0] in {OURS} and getattr(module, "__file__", None):
        print(module.__file__)
"""
"""Says from where a service's modules come. An installation of another version also finds what a checkout lacks."""
BUNDLE = "en-de-small"


@dataclass(frozen=True)
class Running:
    """A version's service, which is ready."""

    server: Server
    begin_idling: Path | None
    """When this file is made, the engine computes nothing from then on; None when it cannot be told so."""

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        port = urlsplit(self.server.url).port
        assert port
        return port


@dataclass(frozen=True)
class Version:
    """A checkout of this repository, and the Python that runs it."""

    name: str
    checkout: Path
    python: str

    @property
    def commit(self) -> str:
        """Its commit, with "-dirty" when files differ from it; empty where git does not know."""
        command = ["git", "-C", str(self.checkout), "describe", "--always", "--dirty", "--exclude", "*"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            return ""

    @contextmanager
    def serving(self, idle: bool) -> Iterator[Running]:
        """Its service with `BUNDLE`, one thread and no Ray; with ``idle``, one whose engine can be told to compute
        nothing. StartFailed when it does not start, or when Python would run another version instead.
        """
        with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as folder:
            begin = Path(folder) / "idle"
            paths = [str(IDLE), str(self.checkout)] if idle else [str(self.checkout)]
            environment = {"PYTHONPATH": os.pathsep.join(paths)} | ({"IDLE_ENGINE": str(begin)} if idle else {})
            self._check(folder, environment)
            port = free_port()
            arguments = ["--no-ray", "--bundle", BUNDLE, "--cpus", "1", "--host", "127.0.0.1", "--port", str(port)]
            command = [self.python, "-m", "serving.cli", "serve", *arguments]
            with running(command, f"http://127.0.0.1:{port}", folder, **environment) as server:
                yield Running(server, begin if idle else None)

    def _check(self, folder: str, environment: dict[str, str]) -> None:
        """StartFailed unless Python, started in ``folder`` with ``environment``, imports what is in the checkout."""
        command = [self.python, "-c", LOADED]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, env=clean_environment(**environment), check=False
            )
        except OSError as error:
            raise StartFailed(f"{self.python} does not run: {error.strerror}") from None
        if done.returncode:
            raise StartFailed(f"{self.checkout} cannot be imported: {done.stderr.strip()}")
        for file in map(Path, done.stdout.splitlines()):
            if not file.resolve().is_relative_to(self.checkout.resolve()):
                raise StartFailed(f"Python imports {file} in place of a module that {self.checkout} lacks")
