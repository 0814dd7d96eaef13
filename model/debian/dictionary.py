"""The dictionary Ding: words, phrases and example sentences."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.debian.texts import Texts


class Entry(NamedTuple):
    """One word, phrase or sentence."""

    english: str
    german: str


def entries(folder: Path) -> Iterator[Entry]:
    """Those of the dictionary Ding: each line has variants of an entry, each variant synonyms."""
    for path in sorted(folder.rglob("trans/de-en")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("#") or " :: " not in line:
                continue
            german, english = ([part.strip() for part in side.split("|")] for side in line.split(" :: ", 1))
            if len(german) == len(english):
                yield from (Entry(_entry(one), _entry(other)) for one, other in zip(english, german, strict=True))


def _entry(text: str) -> str:
    """The first synonym, without grammar in braces, fields in brackets and remarks in parentheses."""
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|(?<!\S)/[^/]*/(?!\w)", " ", text)
    return " ".join(plain.split(";")[0].split())


_SHORTENED = re.compile(r"\b(sb|sth|smb|smth|etc|etw|jd|jdn|jdm|jds|usw)\.$")


def _sentence(entry: Entry) -> bool:
    ended = all(text.endswith((".", "!", "?")) and not _SHORTENED.search(text) for text in entry)
    return ended and len(entry.english.split()) >= 3


def example_sentences(folder: Path) -> Texts:
    """Ding's entries that are sentences."""
    return (entry for entry in entries(folder) if _sentence(entry))


def phrases(folder: Path) -> Texts:
    """Ding's entries of four words or more on a side that are no sentences."""
    return (
        entry for entry in entries(folder) if not _sentence(entry) and max(len(text.split()) for text in entry) >= 4
    )


def words(folder: Path) -> Texts:
    """Ding's entries of one to three words."""
    return (
        entry for entry in entries(folder) if not _sentence(entry) and all(0 < len(text.split()) <= 3 for text in entry)
    )
