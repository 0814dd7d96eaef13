"""Services that stand for versions of this repository."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.servers import Server
from serving.bench.versions import Running, Version


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


class Elsewhere(Version):
    """A version whose service runs already, at the address ``checkout``."""

    @contextmanager
    def serving(self, idle: bool) -> Iterator[Running]:
        assert not idle
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            yield Running(Server(f"http://{self.checkout}", process), None)


def elsewhere(name: str, url: str) -> Elsewhere:
    return Elsewhere(name, Path(url.removeprefix("http://")), sys.executable)
