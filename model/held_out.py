"""Pairs kept apart to evaluate on, and text that is unlike them."""

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from model.pairs import Pair
from model.tokenizer import normalise


class Split(NamedTuple):
    """Pairs to learn from, to choose by, and to report."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


def split(pairs: Iterable[Pair], count: int, origins: Collection[str], seed: int) -> Split:
    """Draw about ``count`` pairs for test, and then for dev, evenly from ``origins`` (all if there are none named).

    What is like one of test is in neither of the others, what is like one of dev not in train (`without`). ValueError
    when an origin has too few pairs, or does not exist, or there are more origins than pairs to draw.
    """
    draw, rest = random.Random(seed), list(pairs)
    known = {pair.origin for pair in rest}
    if missing := set(origins) - known:
        raise ValueError(f"no pairs of {', '.join(sorted(missing))}; there are {', '.join(sorted(known))}")
    wanted = sorted(set(origins) or known)
    if not wanted or not (each := count // len(wanted)):
        raise ValueError(
            f"{count} pairs cannot be drawn from {len(wanted)} origins evenly: ask for more, or name origins"
        )
    drawn = []
    for name in ("test", "dev"):
        by_origin = defaultdict(list)
        for pair in rest:
            by_origin[pair.origin].append(pair)
        chosen: set[Pair] = set()
        for origin in wanted:
            if len(found := sorted(set(by_origin[origin]))) < each:
                raise ValueError(
                    f"{origin} has {len(found)} pairs left, too few to draw {each} for {name}: ask for fewer"
                )
            chosen.update(draw.sample(found, each))
        drawn.append(sorted(chosen))
        rest = without(rest, chosen)
    test, dev = drawn
    return Split(rest, dev, test)


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
