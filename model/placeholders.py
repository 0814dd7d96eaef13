"""Text in which placeholders stand for names and numbers."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from model.pairs import Pair

PLACEHOLDERS = "placeholders"
_VALUE = re.compile(r"(?<![\w.,%$#{&\\])(?:(?!^)[A-Z]\w{2,}|\d+)(?!\w|[.,]\w)")
"""A number, or a capitalised word that does not open the text: what a placeholder would stand for, not one itself."""


def with_placeholders(pairs: Iterable[Pair], placeholders: Sequence[str], seed: int) -> list[Pair]:
    """Copies of ``pairs`` with random ``placeholders`` in place of values, so that a model learns to carry them over.

    A value is a number or a name that stands exactly once on each side. A pair without one has no copy; the first three
    are replaced. The copies' origin is `PLACEHOLDERS`.
    """
    draw, copies = random.Random(seed), []
    for pair in pairs if placeholders else ():
        source, target = (Counter(_VALUE.findall(text)) for text in (pair.source, pair.target))
        values = [value for value, count in source.items() if count == target[value] == 1][:3]
        if values:
            chosen = dict(zip(values, draw.choices(placeholders, k=len(values)), strict=True))
            copies.append(Pair(_fill(pair.source, chosen), _fill(pair.target, chosen), PLACEHOLDERS))
    return copies


def survival(sources: Sequence[str], written: Sequence[str], placeholders: Sequence[str]) -> float:
    """Share of the ``placeholders`` in ``sources`` that the translations ``written`` have too; 1 if there are none."""
    longest_first = sorted(placeholders, key=len, reverse=True)  # %1 is no part of %1$s
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    there = kept = 0
    for source, text in zip(sources, written, strict=True):
        wanted, found = Counter(pattern.findall(source)), Counter(pattern.findall(text))
        there, kept = there + wanted.total(), kept + (wanted & found).total()
    return kept / there if there else 1.0


def _fill(text: str, chosen: Mapping[str, str]) -> str:
    return _VALUE.sub(lambda value: chosen.get(value[0], value[0]), text)
