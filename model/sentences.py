"""Cut text into sentences, the units a model translates, so that it can be put together again exactly."""

import re
from typing import NamedTuple

_BOUNDARY = re.compile(
    r"""
    (?<![.!?…])                             # from its first mark on, or a row of marks is tried from each of them
    (?P<end>[.!?…]++[)\]"'”’“‘«»]*+)        # the end of a sentence, with what closes around it
    [^\S\n]++                               # space on the same line
    (?=[(\["'“„‘‚»«¿¡]*[^\W_a-zäöüß])       # and something that can open the next: not a small letter
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"""(?:^|[\s(\["'])(?:[^\W\d_]|e\.g|i\.e|cf|vs|etc|Mr|Mrs|Ms|Dr|Prof|St|No|Nr|Fig|Vol|approx|ca|bzw|d\.h|z\.B|u\.a|
    Abb|Bd|Hr|Fr|\d+)\.$""".replace("\n    ", ""),
)
_LINE_BREAK = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")


class Sentence(NamedTuple):
    """A piece of a text and the white space around it: a text is the sum of before + text + after of its sentences."""

    before: str
    text: str
    """Empty where the text holds nothing but white space."""
    after: str


def split(text: str) -> list[Sentence]:
    """The sentences of ``text``; line breaks always part, full stops where a sentence seems to end."""
    found: list[Sentence] = []
    blank: list[str] = []
    begin = 0
    for end in [*_ends(text), len(text)]:
        piece = text[begin:end]
        if inner := piece.strip():
            lead = piece.index(inner)
            before = piece[:lead]
            if found:
                found[-1] = _followed_by(found[-1], blank)
            else:
                before = "".join(blank) + before
            found.append(Sentence(before, inner, piece[lead + len(inner) :]))
            blank = []
        else:
            blank.append(piece)
        begin = end
    if found:
        found[-1] = _followed_by(found[-1], blank)
    elif text:
        found.append(Sentence(text, "", ""))
    return found


def _followed_by(sentence: Sentence, blank: list[str]) -> Sentence:
    return sentence._replace(after=sentence.after + "".join(blank)) if blank else sentence


def _ends(text: str) -> list[int]:
    """Positions after the white space that parts two sentences, in order."""
    breaks = [match.end() for match in _LINE_BREAK.finditer(text)]
    stops = [
        match.end()
        for match in _BOUNDARY.finditer(text)
        if not _ABBREVIATION.search(text[max(0, match.start() - 12) : match.end("end")])
    ]
    return sorted({*breaks, *stops} - {len(text)})
