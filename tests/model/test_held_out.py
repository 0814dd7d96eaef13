from collections import Counter

import pytest

from model.held_out import split, without
from model.pairs import Pair


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("The cat sat on the mat.", "Etwas anderes.", False),  # the same text
        ("Something else.", "Die Katze saß auf der Matte.", False),
        ("THE CAT SAT ON THE mat. Really?", "Etwas anderes.", False),  # three of four runs
        ("Yes, the cat sat on the mat there now.", "Etwas anderes.", True),  # two of six
        ("The cat sat.", "Etwas anderes.", True),
        ("the cat sat on the mat", "Etwas anderes.", False),  # case and punctuation do not count
        ("Something else.", "So, der alte Hu\u0308hnerstall ist leer!", False),
        ("…", "Etwas anderes.", True),
        ("The cat sat on it.", "Etwas anderes.", True),  # one of two
    ],
)
def test_what_resembles_a_held_out_pair_is_left_out(source: str, target: str, kept: bool) -> None:
    held_out = [
        Pair("The cat sat on the mat.", "Die Katze saß auf der Matte.", "all"),
        Pair("Nobody is at home there.", "Der alte H\u00fchnerstall ist leer.", "all"),
    ]
    pair = Pair(source, target, "all")
    assert without([pair], held_out) == ([pair] if kept else [])


PAIRS = [
    Pair(f"word {n} of {origin}", f"Wort {n} aus {origin}", origin) for origin in ("a", "b", "c") for n in range(40)
]


def test_a_split_draws_evenly_and_its_parts_are_unlike() -> None:
    copies = [Pair(pair.source, f"anders {pair.target}", "copy") for pair in PAIRS]
    parts = split([*PAIRS, *copies], 21, ["a", "b", "a"], seed=1)
    assert [Counter(pair.origin for pair in part) for part in parts[1:]] == [{"a": 10, "b": 10}] * 2
    sources = [{pair.source for pair in part} for part in parts]
    assert sources[0].isdisjoint(sources[1] | sources[2])
    assert sources[1].isdisjoint(sources[2])
    # All the others are there, in order, and their copies.
    held = sources[1] | sources[2]
    assert parts.train == [pair for pair in (*PAIRS, *copies) if pair.source not in held]


def test_a_split_is_drawn_by_seed_from_every_origin_unless_some_are_named() -> None:
    first = split(PAIRS, 30, (), seed=1)
    assert Counter(pair.origin for pair in first.test) == {"a": 10, "b": 10, "c": 10}
    assert split(PAIRS, 30, (), seed=1) == first
    assert split(PAIRS, 30, (), seed=2) != first


def test_a_split_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs of d, e; there are a, b, c"):
        split(PAIRS, 30, ["e", "a", "d"], seed=1)
    for pairs, count, said in ((PAIRS, 2, "2 pairs cannot be drawn from 3 origins"), ([], 2, "from 0 origins")):
        with pytest.raises(ValueError, match=said):
            split(pairs, count, (), seed=1)
    with pytest.raises(ValueError, match="a has 19 pairs left, too few to draw 21 for dev"):
        split(PAIRS, 21, ["a"], seed=1)
