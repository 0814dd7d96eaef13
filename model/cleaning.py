"""What of parallel text is left out before anything is learnt from it."""

import re
from collections import Counter
from collections.abc import Iterable

from model.pairs import Pair
from model.tokenizer import normalise


def clean(pairs: Iterable[Pair]) -> tuple[list[Pair], Counter[str]]:
    """The pairs worth learning from, their text normalised, and how many were left out for which reason.

    ``empty``: nothing on a side. ``untranslated``: four words or more, the same on both sides. ``lopsided``: one side
    over 20 characters and over three times as long as the other. ``repeated``: the same text as an earlier pair.
    """
    kept: dict[tuple[str, str], Pair] = {}
    left_out = Counter(empty=0, untranslated=0, lopsided=0, repeated=0)
    for pair in pairs:
        source, target = normalise(pair.source), normalise(pair.target)
        shorter, longer = sorted((len(source), len(target)))
        if not source or not target:
            left_out["empty"] += 1
        elif source == target and len(source.split()) >= 4:
            left_out["untranslated"] += 1
        elif longer > max(20, 3 * shorter):
            left_out["lopsided"] += 1
        elif (source, target) in kept:
            left_out["repeated"] += 1
        else:
            kept[source, target] = Pair(source, target, pair.origin)
    return list(kept.values()), left_out


def without(pairs: Iterable[Pair], held_out: Iterable[Pair]) -> list[Pair]:
    """The pairs like none of ``held_out``: no side equals one of theirs, or has over half its runs of 4 words there.

    Case, punctuation and spaces do not count.
    """
    texts: tuple[set[Words], set[Words]] = (set(), set())
    runs: tuple[set[Words], set[Words]] = (set(), set())
    for pair in held_out:
        for side, text in enumerate((pair.source, pair.target)):
            texts[side].add(_words(text))
            runs[side].update(_runs(_words(text)))

    def known(side: int, text: str) -> bool:
        found = _runs(words := _words(text))
        return words in texts[side] or 2 * sum(run in runs[side] for run in found) > len(found)

    return [pair for pair in pairs if not known(0, pair.source) and not known(1, pair.target)]


Words = tuple[str, ...]


def _words(text: str) -> Words:
    plain = normalise(text).lower()
    return tuple(re.findall(r"\w+", plain)) or (plain,)


def _runs(words: Words) -> list[Words]:
    return [words[place : place + 4] for place in range(len(words) - 3)]
