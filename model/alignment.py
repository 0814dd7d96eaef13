"""Two documents that say the same thing, block by block and sentence by sentence."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from model.sentences import split
from model.tokenizer import normalise

SKIP = 1.2
"""What it costs to leave a block without a counterpart."""
MOST = 1.5
"""What a pair may cost to be one."""
ANCHORED = 0.5
"""How much cheaper a pair is that shares numbers, names of commands and the like; and dearer one that does not."""
BAND = 40
"""How far from the diagonal counterparts are looked for, in blocks."""
MOST_LOPSIDED = 2
"""Documents of which one has more than so many times the other's blocks are not looked at."""
_ANCHOR = re.compile(r"[\w.-]+\(\d\w*\)|[^\s\"'“”„»«‚‘’()]*(?:[\d_/=$<>\\]|--)[^\s\"'“”„»«‚‘’().,;:]*")
_WORD = re.compile(r"[^\W\d_]{2}")


class Block(NamedTuple):
    """A paragraph, a heading, an item of a list."""

    kind: str
    """Only blocks of one kind are counterparts."""
    text: str


def align(source: Sequence[Block], target: Sequence[Block]) -> list[tuple[str, str]]:
    """Texts of blocks that are each other's translation, in order.

    As Gale and Church (1993) align sentences: the cheapest way through both, where a pair costs the more the more its
    lengths differ. Here blocks pair off one to one or stay alone, and what is never translated counts too.
    """
    if max(len(source), len(target)) > MOST_LOPSIDED * min(len(source), len(target)):
        return []
    wide = max(BAND, abs(len(source) - len(target)) + BAND // 2)
    best: dict[tuple[int, int], tuple[float, int, int]] = {(0, 0): (0.0, 0, 0)}
    for row in range(len(source) + 1):
        centre = row * len(target) // max(1, len(source))
        for column in range(max(0, centre - wide), min(len(target), centre + wide) + 1):
            ways = []
            if row and column and (before := best.get((row - 1, column - 1))):
                ways.append((before[0] + _cost(source[row - 1], target[column - 1]), row - 1, column - 1))
            if row and (before := best.get((row - 1, column))):
                ways.append((before[0] + SKIP, row - 1, column))
            if column and (before := best.get((row, column - 1))):
                ways.append((before[0] + SKIP, row, column - 1))
            if ways:
                best[row, column] = min(ways)
    found = []
    row, column = len(source), len(target)
    while row or column:
        _, row_before, column_before = best[row, column]
        if row_before < row and column_before < column:
            one, other = source[row_before], target[column_before]
            if _cost(one, other) <= MOST:
                found.append((one.text, other.text))
        row, column = row_before, column_before
    return found[::-1]


def _cost(source: Block, target: Block) -> float:
    if source.kind != target.kind:
        return math.inf
    cost = 1.5 * abs(math.log((len(target.text) + 8) / (len(source.text) + 8)))
    ours, theirs = _anchors(source.text), _anchors(target.text)
    if ours or theirs:
        shared = len(ours & theirs) / len(ours | theirs)
        cost += ANCHORED * (1 - 2 * shared)
    return cost


@functools.lru_cache(maxsize=10_000)
def _anchors(text: str) -> frozenset[str]:
    return frozenset(_ANCHOR.findall(text))


def has_word(text: str) -> bool:
    """Whether two letters stand side by side: what has none, such as the number of a section, says nothing."""
    return _WORD.search(text) is not None


def sentences(source: str, target: str) -> Iterator[tuple[str, str]]:
    """The sentences of two texts in pairs, when both have as many; else the texts themselves.

    Left out is what has no word on either side.
    """
    texts = normalise(source), normalise(target)
    parts = [[piece.text for piece in split(text) if piece.text] for text in texts]
    pairs = list(zip(*parts, strict=True)) if len(parts[0]) == len(parts[1]) else [texts]
    yield from (pair for pair in pairs if any(map(has_word, pair)))
