"""Descriptions of packages, from apt's indices of translations."""

import re
from pathlib import Path

from model.alignment import sentences
from model.debian.texts import Texts


def descriptions(folder: Path) -> Texts:
    """What packages are, from apt's indices of translations, paired by the English text's MD5."""
    known: dict[str, dict[str, list[str]]] = {"en": {}, "de": {}}
    for language, by_digest in known.items():
        for path in sorted(folder.glob(f"*_Translation-{language}")):
            for stanza in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
                fields = dict(re.findall(rf"^(Description-md5|Description-{language}): (.*(?:\n .*)*)", stanza, re.M))
                if len(fields) == 2:
                    by_digest[fields["Description-md5"]] = _paragraphs(fields[f"Description-{language}"])
    for digest in sorted(known["en"].keys() & known["de"].keys()):
        english, german = known["en"][digest], known["de"][digest]
        if len(english) == len(german):
            for one, other in zip(english, german, strict=True):
                yield from sentences(one, other)


def _paragraphs(description: str) -> list[str]:
    """The synopsis, and what follows: lines that only hold a full stop part paragraphs, indented ones are items."""
    synopsis, *lines = description.split("\n")
    found = [synopsis, ""]
    for line in (line[1:] for line in lines):
        if line == ".":
            found.append("")
        elif line.startswith(" ") and re.match(r"\s+[-*+o•]\s", line):
            found.append(re.sub(r"^\s+[-*+o•]\s+", "", line))
        else:
            found[-1] += " " + line.strip()
    return [text.strip() for text in found if text.strip()]
