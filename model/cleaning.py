"""What of parallel text is left out before anything is learnt from it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from model.pairs import Pair
from model.tokenizer import normalise

_ENGLISH = "the of and to is that for with are not be this it as by from you can or if on"
_GERMAN = "der die das den dem des ein eine einen und oder ist nicht mit für auf von zu wird werden sie es im kann wenn"
FUNCTION_WORDS = {"en": frozenset(_ENGLISH.split()), "de": frozenset(_GERMAN.split())}
"""Small words of a language; few sentences have none of them, and few of another language have two."""


def clean(pairs: Iterable[Pair], languages: Sequence[str] = ("en", "de")) -> tuple[list[Pair], Counter[str]]:
    """The pairs worth learning from, their text normalised, and how many were left out for which reason.

    ``empty``: nothing on a side. ``untranslated``: four words or more, the same on both sides. ``foreign``: a side in
    the language of the other (`languages`, in order). ``lopsided``: one side over 20 characters and over three times as
    long as the other. ``repeated``: the same text as an earlier pair.
    """
    kept: dict[tuple[str, str], Pair] = {}
    left_out = Counter(empty=0, untranslated=0, foreign=0, lopsided=0, repeated=0)
    for pair in pairs:
        source, target = normalise(pair.source), normalise(pair.target)
        shorter, longer = sorted((len(source), len(target)))
        if not source or not target:
            left_out["empty"] += 1
        elif source == target and len(source.split()) >= 4:
            left_out["untranslated"] += 1
        elif _is_in(languages[1], source, languages[0]) or _is_in(languages[0], target, languages[1]):
            left_out["foreign"] += 1
        elif longer > max(20, 3 * shorter):
            left_out["lopsided"] += 1
        elif (source, target) in kept:
            left_out["repeated"] += 1
        else:
            kept[source, target] = Pair(source, target, pair.origin)
    return list(kept.values()), left_out


def _is_in(language: str, text: str, expected: str) -> bool:
    """Whether ``text`` has two different small words of ``language``, and none of the ``expected`` one."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    return len(words & FUNCTION_WORDS[language]) >= 2 and words.isdisjoint(FUNCTION_WORDS[expected])
