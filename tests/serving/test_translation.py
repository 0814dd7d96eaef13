import itertools
import random

import pytest

from model.sentences import split
from serving.engine.search import Hypothesis
from serving.translation import best_combinations, join


def hypothesis(token: int, score: float, tokens: int = 2) -> Hypothesis:
    return Hypothesis([token] * tokens, [score / tokens] * tokens, "stop")


def decode(tokens: "list[int] | tuple[int, ...]") -> str:
    """Tokens as letters; 9 is spelt like 1."""
    return "abcdefgh"[(tokens[0] - 1) % 8] * len(tokens)


def test_the_best_combinations_are_those_of_trying_all() -> None:
    chance = random.Random(4)
    for _ in range(50):
        ranks = [
            sorted(
                (chance.choice([-1.0, -1.5, chance.uniform(-9, 0)]) for _ in range(chance.randint(1, 4))), reverse=True
            )
            for _ in range(chance.randint(1, 4))
        ]
        every = sorted(-sum(each) for each in itertools.product(*ranks))
        for count in (1, 3, 100):
            found = best_combinations(ranks, count)
            sums = [-sum(values[index] for values, index in zip(ranks, choice, strict=True)) for choice in found]
            assert sums == pytest.approx(every[:count])
            assert found[0] == [0] * len(ranks)
            assert len({tuple(choice) for choice in found}) == len(found)


def test_a_text_of_thousands_of_sentences_is_combined_too() -> None:
    found = best_combinations([[-float(rank) for rank in range(16)]] * 5000, 16)
    # The best changes nothing, the next fifteen change one sentence each.
    assert [sum(choice) for choice in found] == [0] + [1] * 15


def test_alternatives_change_first_where_that_costs_least() -> None:
    sentences = split("One.\n  Two.")
    first = [hypothesis(1, -1.0), hypothesis(2, -4.0)]
    second = [hypothesis(3, -2.0), hypothesis(4, -3.0)]
    found = join(sentences, [first, second], decode, alternatives=3)
    assert [each.text for each in found.alternatives] == ["aa\n  cc", "aa\n  dd", "bb\n  cc"]
    assert [each.score for each in found.alternatives] == [-3.0, -4.0, -6.0]
    assert (found.text, found.score, found.ids, found.tokens) == ("aa\n  cc", -3.0, [1, 1, 3, 3], 4)
    assert found.log_probabilities == [-0.5, -0.5, -1.0, -1.0]


def test_what_is_spelt_alike_is_one_alternative_and_the_best_of_them() -> None:
    hypotheses = [hypothesis(1, -1.0), hypothesis(9, -2.0), hypothesis(2, -3.0)]
    found = join(split("One."), [hypotheses], decode, alternatives=3)
    assert [(each.text, each.score) for each in found.alternatives] == [("aa", -1.0), ("bb", -3.0)]


def test_the_order_is_the_engines_whatever_the_length_penalty() -> None:
    longer, shorter = hypothesis(1, -3.0, tokens=4), hypothesis(2, -2.0, tokens=2)
    found = join(split("One. Two."), [[longer, shorter]] * 2, decode, alternatives=4, length_penalty=1.0)
    assert [each.text for each in found.alternatives] == ["aaaa aaaa", "aaaa bb", "bb aaaa", "bb bb"]


def test_one_alternative_is_just_the_translation() -> None:
    found = join(split("One. Two."), [[hypothesis(1, -1.0)], [Hypothesis([2], [-2.0], "length")]], decode)
    assert (found.text, found.alternatives, found.finish_reason) == ("aa b", [], "length")
