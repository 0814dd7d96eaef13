"""Numbers that every replica of a machine writes, and any of them reads, at once: what one wrote, the next request to
any other sees.

Each replica has a memory-mapped file below ``<state>/totals/``, of the format of `prometheus_client`'s `MmapedDict`: a
change is two assignments, without a system call, and no replica waits for another. While it lives it holds a lock
(`flock`) on its file, so anybody can tell who is alive; the system lets go of it however the replica ends. The counters
of the dead go on counting, their gauges do not. Whoever starts folds the files of the dead into one, the base.

Processes may die at any point, and nothing is lost or counted twice; when the machine itself dies, the last half minute
may be lost. A file that cannot be read is left out, and said in one line.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from serving.totals_file import Reading, create, key_of, load, locked, opened

FOLDER = "totals"
"""Below the state folder."""
SUFFIX, NEW = ".totals", ".new"
"""Of a file that counts, and of one that does not yet."""
BASE = "base"
"""The file of all that are gone; it has no suffix, for it is no replica's."""
ATTEMPTS = 50
"""To read all files while others fold them."""

logger = logging.getLogger(__name__)


class Counter:
    """A number that only rises; any thread may add to it."""

    def __init__(self, write: Callable[[float], None]) -> None:
        self._write, self._value, self._lock = write, 0.0, threading.Lock()

    def add(self, amount: float = 1) -> None:
        """Count ``amount`` more, for all to see when this returns; ValueError when it is negative."""
        if amount < 0:
            raise ValueError(f"a counter cannot fall by {-amount}")
        with self._lock:
            self._value += amount
            self._write(self._value)


class Gauge:
    """A number that rises and falls."""

    def __init__(self, write: Callable[[float], None]) -> None:
        self.set = write
        """For all to see when it returns."""


class Totals:
    """One replica's own numbers."""

    def __init__(self, state: Path) -> None:
        """Fold the dead and make a file below ``state``, which is made (for this user alone) unless it is there.

        OSError when it cannot be made, written to or locked.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = state / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        with _alone_in(folder):
            try:
                _fold(folder)
            except OSError as error:  # they count as before
                logger.warning("files in %s cannot be folded: %s", folder, error)
            path = folder / f"{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
            new = path.with_suffix(NEW)
            self._lock = create(new)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file = MmapedDict(new)  # type: ignore[no-untyped-call]
                new.rename(path)  # seen by others only now: whoever sees it finds it locked
            except BaseException:
                os.close(self._lock)
                raise
        self._counters: dict[str, Counter] = {}
        self._growing = threading.Lock()
        self._closed = False

    def counter(self, name: str, **labels: str) -> Counter:
        """The counter of that name and ``labels``, which begins at 0; the same for all who ask."""
        key = key_of("counter", name, labels)
        with self._growing:
            if key not in self._counters:
                self._counters[key] = Counter(self._writer(key))
            return self._counters[key]

    def gauge(self, name: str, **labels: str) -> Gauge:
        """The gauge of that name and ``labels``, which begins at 0."""
        with self._growing:
            return Gauge(self._writer(key_of("gauge", name, labels)))

    def close(self) -> None:
        """Be dead to others; nothing counts any more. No other thread may be writing."""
        if not self._closed:
            self._closed = True
            self._file.close()  # type: ignore[no-untyped-call]
            os.close(self._lock)

    def _writer(self, key: str) -> Callable[[float], None]:
        if self._closed:
            return lambda value: None
        # Only new keys may move the file's memory. Whoever writes to the old one meanwhile writes to the same file.
        self._file.read_value(key)  # type: ignore[no-untyped-call]
        put = self._file.write_value

        def write(value: float) -> None:
            if not self._closed:
                put(key, value, 0.0)  # type: ignore[no-untyped-call]

        return write


def read(state: Path) -> Reading:
    """All numbers of those that share the folder ``state``, as they are now; OSError when they cannot be read."""
    folder = state / FOLDER
    for _ in range(ATTEMPTS):
        reading = Reading()
        with opened(folder / BASE) as base:
            if base is not None and (loaded := load(base, folder / BASE)):
                reading = loaded
            for path in _files(folder):
                if path.name not in reading.folded:
                    with opened(path) as descriptor:
                        if descriptor is not None and (own := load(descriptor, path)):
                            reading.add(own, live=locked(descriptor))
            # A file that has been folded meanwhile is in a base that this one is not, and may have been missed here.
            if _is(base, folder / BASE):
                break
    return reading


def _fold(folder: Path) -> None:
    """Add the files of the dead to the base, and remove them; nobody else may be at it."""
    for left in folder.glob(f"*{NEW}"):
        left.unlink()  # its maker has died
    base, dead = Reading(), []
    with opened(folder / BASE) as descriptor:
        if descriptor is not None:
            if loaded := load(descriptor, folder / BASE):
                base = loaded
            else:
                (folder / BASE).rename(folder / f"damaged-{secrets.token_hex(8)}")
    for path in _files(folder):
        if path.name in base.folded:
            path.unlink()  # whoever folded it died before this
            continue
        with opened(path) as descriptor:
            if descriptor is not None and not locked(descriptor) and (own := load(descriptor, path)):
                base.add(own, live=False)
                dead.append(path)
    if not dead:
        return
    new = folder / f"{BASE}{NEW}"
    written = create(new)
    try:
        file = MmapedDict(new)  # type: ignore[no-untyped-call]
        with contextlib.closing(file):
            for number, value in base.counters.items():
                file.write_value(key_of("counter", number.name, dict(number.labels)), value, 0.0)  # type: ignore[no-untyped-call]
            for path in dead:
                file.write_value(key_of("folded", path.name, {}), 0.0, 0.0)  # type: ignore[no-untyped-call]
        os.fsync(written)
    finally:
        os.close(written)
    new.rename(folder / BASE)
    for path in dead:
        path.unlink()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else starts or folds here, and keep it so."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    """Those of replicas, dead or alive; none where somebody has removed the folder."""
    return list(folder.glob(f"*{SUFFIX}"))


def _is(descriptor: int | None, path: Path) -> bool:
    """Whether ``path`` is still the file that has been opened, or still not there."""
    try:
        now = path.stat()
    except OSError:
        return descriptor is None
    return descriptor is not None and os.path.samestat(os.fstat(descriptor), now)
