"""Names of languages as people write them, such as ``EN``, ``en-US`` and ``de_DE``, and the codes that models have."""

import math
from collections.abc import Sequence

from serving.errors import Invalid

Pair = tuple[str, str]
"""The codes of a source and a target language."""


def distance(name: str | None, code: str) -> float:
    """How far ``name`` must fall back to be the language ``code``; infinity when it is another language.

    0 is the code itself, or None, which is any language. 1 is the code in other letters: upper and lower case are
    alike, and so are ``_`` and ``-``. Each part left out at the end (a region, a script) adds 1.
    """
    if name is None or name == code:
        return 0
    parts, known = _parts(name), _parts(code)
    if parts[: len(known)] != known or "" in parts:
        return math.inf
    return 1 + len(parts) - len(known)


def best_pair(pairs: Sequence[Pair], source: str | None, target: str | None, owner: str = "this model") -> Pair:
    """The one of ``pairs`` that is nearest to ``source`` and ``target`` (None: any language), the first of several.

    Invalid when there is none; the error says what ``owner``, whose pairs they are, can read or write.
    """
    readable = [pair for pair in pairs if distance(source, pair[0]) < math.inf]
    if not readable:
        sources = ", ".join(sorted({pair[0] for pair in pairs}))
        raise Invalid([("source", f"{source!r} is not a source language; {owner} reads {sources}")])
    fitting = [pair for pair in readable if distance(target, pair[1]) < math.inf]
    if not fitting:
        targets = ", ".join(sorted({pair[1] for pair in readable}))
        raise Invalid([("target", f"{target!r} is not a target language; {owner} writes {targets}")])
    return min(fitting, key=lambda pair: (distance(source, pair[0]), distance(target, pair[1])))


def _parts(name: str) -> list[str]:
    return name.lower().replace("_", "-").split("-")
