"""Manual pages."""

import gzip
import re
from pathlib import Path

from model.alignment import Block, align, has_word, sentences
from model.debian.texts import Texts, each

_ESCAPES = [
    (r"\\f(\[[^\]]*\]|\(..|.)|\\m\[[^\]]*\]|\\s[-+]?\d|\\[hvwz]'[^']*'|\\u\[\d+\]\\d|\\[&:/,%|^c]", ""),
    (r"\\\*\(Aq|\\\*\[Aq\]|\\\(bq|\\\[bq\]", "'"),
    (r"\\\*\(L\"|\\\*\(R\"", '"'),
    (r"\\\(Fo|\\\[Fo\]", "«"),
    (r"\\\(Fc|\\\[Fc\]", "»"),
    (r"\\-|\\\(hy", "-"),
    (r"\\\((aq|cq|oq)|\\\[(aq|cq|oq)\]", "'"),
    (r"\\\(dq|\\\[dq\]", '"'),
    (r"\\\(lq|\\\[lq\]", "“"),
    (r"\\\(rq|\\\[rq\]", "”"),
    (r"\\\(em|\\\[em\]", "—"),
    (r"\\\(en|\\\[en\]", "–"),
    (r"\\\(bu|\\\[bu\]", "•"),
    (r"\\\(ha|\\\[ha\]", "^"),
    (r"\\\(ti|\\\[ti\]", "~"),
    (r"\\[ ~0]", " "),
    (r"\\([.'`])", r"\1"),
]
_BREAKS = {"PP", "P", "LP", "HP", "RS", "RE", "sp", "br"}
_FONTS = {"B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SM", "SB"}
_VERBATIM = {"nf": "fi", "EX": "EE", "TS": "TE", "Vb": "Ve"}


def _unescaped(text: str) -> str:
    """``text`` as it is read; nothing when it has escapes that are not known here."""
    for pattern, plain in _ESCAPES:
        text = re.sub(pattern, plain, text)
    text = re.sub(r"\\\[u([0-9A-F]{4,5})\]", lambda found: chr(int(found[1], 16)), text)
    parts = re.split(r"\\e|\\\(rs|\\\[rs\]", text)
    return "" if any("\\" in part for part in parts) else "\\".join(parts)


def _arguments(rest: str) -> list[str]:
    return [quoted or plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|(\S+)', rest)]


def manual(text: str) -> list[Block]:
    """The blocks of a manual page in roff with the man macros (groff_man(7)); none of one with the mdoc macros."""
    blocks: list[Block] = []
    kind, words, until = "", [""], ""

    def flush(following: str) -> None:
        nonlocal kind, words
        joined = " ".join(_unescaped(" ".join(words)).split())
        if kind and has_word(joined):
            blocks.append(Block(kind, joined))
        kind, words = following, []

    for line in text.splitlines():
        line = re.sub(r'\\".*', "", line)  # a comment
        request, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", line)
        if until or request in _VERBATIM:
            until = "" if request == until else until or _VERBATIM[request]
            flush("PP")
        elif request == "Dd":
            return []
        elif request in ("SH", "SS"):
            flush(request)
            words.append(rest.strip('"'))
            if rest:
                flush("PP")
        elif request in ("TP", "TQ"):
            flush("tag")
        elif request == "IP":
            flush("PP")
            words += _arguments(rest)[:1]
            flush("PP")
        elif request in _BREAKS:
            flush("PP")
        elif request in _FONTS:
            words.append(("" if len(request) == 2 and request not in ("SM", "SB") else " ").join(_arguments(rest)))
            if kind == "tag" and rest:
                flush("PP")
        elif not line.strip():
            flush("PP")
        elif not request and not line.startswith("."):
            words.append(line)
            if kind == "tag":
                flush("PP")
    flush("")
    return blocks


def manuals(folder: Path) -> Texts:
    """Manual pages."""
    return each(folder.rglob("man/de/man*/*.gz"), _page)


def _page(german: Path) -> Texts:
    english = german.parents[2] / german.parent.name / german.name
    if english.is_file():
        read = [gzip.decompress(path.read_bytes()).decode("utf-8", "replace") for path in (english, german)]
        for one, other in align(*map(manual, read)):
            yield from sentences(one, other)
