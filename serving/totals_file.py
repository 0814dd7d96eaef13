"""One file of numbers, of the format of `prometheus_client`'s `MmapedDict`: made, opened, read; whose maker lives."""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import math
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prometheus_client.mmap_dict import MmapedDict

FILE_BYTES = 1 << 18
"""Of a new file: enough for 2,000 numbers. They are written once, so that a full disk is met then and not later, when a
write into mapped memory would end the process."""
LARGEST_FILE = 1 << 26
"""Bytes of a file that is read; a larger one is none of ours."""

logger = logging.getLogger(__name__)


class Number(NamedTuple):
    """What a number is called."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    """Names and values, sorted."""


EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors of a process that has too much open: nothing is wrong with the file, and to leave it out would be."""


@dataclass
class Reading:
    """What the files say."""

    counters: dict[Number, float] = field(default_factory=lambda: defaultdict(float))
    """Sums over all replicas that there have been."""
    gauges: dict[Number, float] = field(default_factory=dict)
    """Of the replicas that live."""
    folded: set[str] = field(default_factory=set)
    """Names of files that are in the base, whether or not they are still there."""

    def add(self, other: "Reading", live: bool) -> None:
        """Count what another file says; its gauges only if its replica is ``live``."""
        for number, value in other.counters.items():
            self.counters[number] += value
        if live:
            self.gauges |= other.gauges


def create(path: Path) -> int:
    """Make a new file without numbers, already of its whole size, and return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if os.pwrite(descriptor, bytes(FILE_BYTES), 0) < FILE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """Give a descriptor to read ``path``; None when it is not there or cannot be read, OSError when none is left."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        _left_out(path, str(error.strerror))
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Whether the file's replica is alive."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def load(descriptor: int, path: Path) -> Reading | None:
    """Read what a file says; None, and a line in the log, when it is damaged or not of this service.

    OSError when this process has too much open.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not 8 <= status.st_size <= LARGEST_FILE:
        _left_out(path, "it is no such file")
        return None
    reading, most = Reading(), status.st_size // 24
    try:
        values = MmapedDict.read_all_values_from_file(os.dup(descriptor))  # type: ignore[no-untyped-call]
        # Damaged lengths could lead round in circles; an entry has 24 bytes at least.
        for count, (key, value, _, _) in enumerate(itertools.islice(values, most + 1)):
            kind, name, labels = json.loads(key)
            number = Number(name, tuple(labels.items()))
            if count == most or not isinstance(name, str) or not all(isinstance(each, str) for each in labels.values()):
                raise ValueError("its entries are not ours")
            if not math.isfinite(value) or (kind == "counter" and value < 0):
                raise ValueError(f"{name} is {value}")
            if kind == "folded":
                reading.folded.add(name)
            else:
                {"counter": reading.counters, "gauge": reading.gauges}[kind][number] = value
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, struct.error) as error:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise
        _left_out(path, str(error) or type(error).__name__)
        return None
    return reading


def key_of(kind: str, name: str, labels: Mapping[str, str]) -> str:
    """A number as the file names it: of the ``kind`` "counter" or "gauge"; or "folded", a file that is in the base."""
    return json.dumps([kind, name, dict(sorted(labels.items()))])


_reported: set[Path] = set()


def _left_out(path: Path, reason: str) -> None:
    """Say once that a file does not count."""
    if path not in _reported:
        _reported.add(path)
        logger.warning("%s is damaged or not of this service, and is left out: %s", path, reason)
