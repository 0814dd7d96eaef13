"""What the processes of a service hold: memory, files and sockets, work."""

import re
import time
from pathlib import Path

import psutil

from tests.processes import alive, family, within
from tests.service import fetch

__all__ = ["GROWTH", "Watch"]

GROWTH = 32 * 2**20
"""Bytes by which memory may grow from the middle third of a run to the last: the least there was in each is compared, as
what is held for a while says nothing. In a run of ten thousand these are 10 KiB a request."""
SETTLE = 30.0
"""Seconds, unless given."""
IDLE = ("dragoman_rows_in_use", "dragoman_waiting_tokens")


class Watch:
    """A service that is watched from its start to its end."""

    def __init__(self, pid: int, url: str, log: Path, settle: float = SETTLE) -> None:
        """``log`` is where its standard streams go; ``settle`` seconds are left to it to give back what has ended."""
        self._pid, self._url, self._log, self._settle = pid, url, log, settle
        self._files = self._sockets = 0
        self._memory: list[int] = []

    def begin(self) -> None:
        """Remember its files and sockets: no client is connected."""
        time.sleep(0.5)
        self._files, self._sockets = self._held()

    def note(self) -> None:
        """Measure its memory; again and again, after as many requests each time."""
        self._memory.append(self.memory())

    def memory(self) -> int:
        """Bytes that its processes have each for themselves."""
        return sum(each.memory_full_info().uss for each in alive(family(self._pid)))

    def faults(self) -> list[str]:
        """What is left of the requests, a sentence each; no client is connected."""
        found = []
        if within(self._settle, self._settled) is None:
            files, sockets = self._held()
            found.append(
                f"{files} files and {sockets} sockets are open; there were {self._files} and {self._sockets} at the start"
            )
        for name in IDLE:
            if within(self._settle, lambda name=name: self._figure(name) == 0) is None:
                found.append(f"{name} is {self._figure(name)} when nothing is asked")
        if self.grown > GROWTH:
            found.append(f"memory has grown by {self.grown / 2**20:.1f} MiB; the limit is {GROWTH // 2**20}")
        return found + self.said()

    @property
    def grown(self) -> int:
        """Bytes, from the middle third to the last."""
        third = len(self._memory) // 3
        return min(self._memory[-third:]) - min(self._memory[third:-third]) if third else 0

    def said(self) -> list[str]:
        """The first exception that it has reported."""
        said = self._log.read_text(encoding="utf-8", errors="replace")
        first = re.search(r"^Traceback \(most recent call last\):\n(?:[ +|].*\n|\n)*.*", said, re.MULTILINE)
        return [f"an exception was reported:\n{first[0]}"] if first else []

    def _held(self) -> tuple[int, int]:
        processes = alive(family(self._pid))
        return sum(each.num_fds() for each in processes), sum(len(each.net_connections("tcp")) for each in processes)

    def _settled(self) -> bool:
        try:
            files, sockets = self._held()
        except psutil.Error:
            return False
        return files <= self._files and sockets <= self._sockets

    def _figure(self, name: str) -> float:
        """The sum of a metric over its labels; it is 1 where it is missing, so that this is noticed."""
        lines = fetch(f"{self._url}/metrics").content.decode().splitlines()
        values = [float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return sum(values) if values else 1.0
