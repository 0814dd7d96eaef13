"""Messages of programs: gettext's catalogues, and JSON."""

import json
import re
from pathlib import Path

import polib

from model.alignment import sentences
from model.debian.texts import Texts, each


def catalogues(folder: Path) -> Texts:
    """Messages of programs: gettext's compiled catalogues of German (GNU gettext manual, section 10.3)."""
    return each(filter(_german, folder.rglob("*.mo")), _catalogue)


def _german(path: Path) -> bool:
    return path.parent.match("de/LC_MESSAGES") or path.name == "de.mo" or path.name.endswith("de_DE.mo")


def _catalogue(path: Path) -> Texts:
    for entry in polib.mofile(str(path)):
        if entry.msgid_plural:
            plurals = [entry.msgid, entry.msgid_plural]
            for english, form in zip(plurals, sorted(entry.msgstr_plural), strict=False):
                yield from _message(english, entry.msgstr_plural[form])
        else:
            yield from _message(entry.msgid, entry.msgstr)


def json_messages(folder: Path) -> Texts:
    """Messages by key in ``en.json`` and ``de.json``, as MediaWiki keeps them."""
    return each((path for path in folder.rglob("de.json") if path.with_name("en.json").is_file()), _keyed)


def _keyed(path: Path) -> Texts:
    english, german = (json.loads(path.with_name(name).read_text(encoding="utf-8")) for name in ("en.json", "de.json"))
    if isinstance(english, dict) and isinstance(german, dict):
        for key, text in english.items():
            if isinstance(text, str) and isinstance(german.get(key), str):
                yield from _message(text, german[key])


_CONTEXT = re.compile(r"^(\?\w+:|[a-zA-Z_ ]+\^(?=\w))")
"""What some games write before an English message to tell it from others."""


def _message(english: str, german: str) -> Texts:
    if "^" not in german:
        english = _CONTEXT.sub("", english)
    english, german = _without_accelerators(english, german)
    blocks = [re.split(r"\n\s*\n", text) for text in (english, german)]
    if len(blocks[0]) == len(blocks[1]):
        for one, other in zip(*blocks, strict=True):
            yield from sentences(one, other)
    else:
        yield from sentences(english, german)


_ACCELERATOR = re.compile(r"((?<!\w)[_&~](?=\w)|(?<=\w)[_&~](?=[a-zäöüß]))(?!\w+;)")
"""Before the letter of a menu entry that opens it with the keyboard; not an entity's, and not that of "R&D"."""
_MARKED = re.compile(r"\w*[_&~]\w+")


def _without_accelerators(english: str, german: str) -> tuple[str, str]:
    """Both without the mark of their accelerator, each of which has one at most: German puts it elsewhere."""
    marks = [len(_ACCELERATOR.findall(text)) for text in (english, german)]
    if max(marks) == 1 and all(sum(map(text.count, "_&~")) <= 1 for text in (english, german)):
        words = [_MARKED.findall(text) for text in (english, german)]
        opens = any(re.search(r"(?<!\w)[_&~]\w", text) for text in (english, german))
        # A word that both have is a name, such as user_id or _exit, unless it looks like an entry: _Name.
        name = words[0] == words[1] and not words[0][0][1:2].isupper()
        if not name and (opens or min(marks) == 1):
            return _ACCELERATOR.sub("", english), _ACCELERATOR.sub("", german)
    return english, german
