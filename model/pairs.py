"""Parallel text in files: a pair a line."""

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.files import write
from model.tokenizer import normalise


@dataclass(frozen=True, order=True)
class Pair:
    """One sentence in two languages, and where it comes from."""

    source: str
    target: str
    origin: str

    def reverse(self) -> "Pair":
        """The same pair in the other direction."""
        return Pair(self.target, self.source, self.origin)


def read_pairs(path: Path) -> list[Pair]:
    """Read a tab-separated file (plain or .gz) of source, target and, optionally, origin.

    ValueError names the file, and the line that is wrong.
    """
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a byte order mark is not text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        match text.rstrip("\r\n").split("\t"):
            case [source, target]:
                pairs.append(Pair(source, target, "all"))
            case [source, target, origin]:
                pairs.append(Pair(source, target, origin))
            case columns:
                raise ValueError(f"{path}, line {number}: {len(columns)} tab-separated columns, expected 2 or 3")
    return pairs


def _lines(path: Path) -> list[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            return list(lines)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None


def directed(pairs: list[Pair], languages: tuple[str, ...], direction: tuple[str, ...]) -> list[Pair]:
    """``pairs`` of two ``languages`` in a ``direction``: as they are, or each reversed."""
    return pairs if direction == languages else [pair.reverse() for pair in pairs]


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write what `read_pairs` reads, whole or not at all; compressed when the name ends in .gz."""
    lines = ("\t".join(map(normalise, (pair.source, pair.target, pair.origin))) + "\n" for pair in pairs)
    contents = "".join(lines).encode()
    write(path, gzip.compress(contents, mtime=0) if path.suffix == ".gz" else contents)
