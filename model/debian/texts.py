"""What readers of packages give."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

Texts = Iterator[tuple[str, str]]
"""English and German."""


def each(paths: Iterable[Path], read: Callable[[Path], Texts]) -> Texts:
    """What ``read`` finds in each of ``paths`` that is a file; one that cannot be read is logged and left out."""
    for path in sorted(paths):
        if not path.is_file():
            continue
        try:
            yield from list(read(path))
        except Exception as error:  # Packages are others': whatever a parser makes of a broken file, the rest counts.
            logger.warning("%s is left out: %s: %s", path, type(error).__name__, error)
