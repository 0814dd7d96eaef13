import random

import pytest

from model.alignment import Block, align, sentences


def paragraphs(*texts: str) -> list[Block]:
    return [Block("p", text) for text in texts]


WORDS = ["file", "window", "system", "process", "directory", "an", "the", "of", "kernel", "option"]


def some(count: int, seed: int) -> list[str]:
    choices = random.Random(seed)
    return [" ".join(choices.choices(WORDS, k=choices.randint(2, 60))) for _ in range(count)]


def test_documents_of_the_same_blocks_pair_off() -> None:
    texts = some(200, 1)
    assert align(paragraphs(*texts), paragraphs(*(text.upper() for text in texts))) == [
        (text, text.upper()) for text in texts
    ]


@pytest.mark.parametrize("seed", range(5))
def test_what_one_side_lacks_does_not_move_the_rest(seed: int) -> None:
    texts = some(150, seed)
    missing = set(random.Random(seed).sample(range(150), 6))
    target = [text.upper() for place, text in enumerate(texts) if place not in missing]
    found = align(paragraphs(*texts), paragraphs(*target))
    right = sum(other == one.upper() for one, other in found)
    assert right >= 135
    assert len(found) - right <= 7


def test_only_blocks_of_one_kind_are_counterparts() -> None:
    assert align([Block("h1", "Overview"), Block("p", "It is.")], [Block("p", "Es ist.")]) == [("It is.", "Es ist.")]


def test_numbers_and_names_hold_a_pair_together() -> None:
    source = paragraphs("See fork(2) for more.", "See open(2) for more.")
    target = paragraphs("Siehe open(2) für mehr.")
    assert align(source, target) == [("See open(2) for more.", "Siehe open(2) für mehr.")]


def test_nothing_aligns_with_nothing() -> None:
    assert align([], []) == []
    assert align(paragraphs("One."), []) == []


def test_a_text_is_cut_where_both_have_as_many_sentences() -> None:
    assert list(sentences("One.  Two.", "Eins. Zwei.")) == [("One.", "Eins."), ("Two.", "Zwei.")]
    assert list(sentences("One. Two.", "Eins und zwei.")) == [("One. Two.", "Eins und zwei.")]
