import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.choice import draw, forbidden, generator
from model.tokenizer import END

PIECES = st.lists(st.integers(4, 7), max_size=12)


def log(*probabilities: float) -> list[float]:
    return [math.log(probability) for probability in probabilities]


def frequencies(log_probabilities: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
    """How often each is drawn over evenly spread numbers: its probability, give or take a thousandth."""
    drawn = [draw(log_probabilities, temperature, top_p, (number + 0.5) / 1000) for number in range(1000)]
    assert drawn == sorted(drawn)
    return [drawn.count(index) / 1000 for index in range(len(log_probabilities))]


@pytest.mark.parametrize("tokens", [[], [5], [5, 5, 5]])
def test_without_rules_nothing_is_forbidden(tokens: list[int]) -> None:
    assert forbidden(tokens, 0, 0) == set()


def test_the_end_is_forbidden_until_it_makes_the_least_tokens() -> None:
    banned = [END in forbidden([5] * written, 3, 0) for written in range(5)]
    assert banned == [True, True, False, False, False]
    assert [forbidden([], least, 0) for least in (0, 1, 2)] == [set(), set(), {END}]


def test_a_token_that_would_complete_an_ngram_again_is_forbidden() -> None:
    tokens = [4, 5, 6, 4, 5, 7, 4, 5]
    assert forbidden(tokens, 0, 1) == {4, 5, 6, 7}
    assert forbidden(tokens, 0, 2) == {6, 7}
    assert forbidden(tokens, 0, 3) == {6, 7}
    assert forbidden(tokens, 0, 4) == set()
    assert forbidden([4, 4, 4], 0, 3) == {4}
    assert forbidden((4, 4, 4), 5, 2) == {4, END}


@given(PIECES, st.integers(1, 5))
def test_what_is_forbidden_is_what_would_stand_twice(tokens: list[int], size: int) -> None:
    def ngrams(sequence: list[int]) -> list[tuple[int, ...]]:
        return [tuple(sequence[place : place + size]) for place in range(len(sequence) - size + 1)]

    stand = ngrams(tokens)
    assert forbidden(tokens, 0, size) == {
        token for token in range(4, 8) if any(new in stand for new in ngrams([*tokens, token])[len(stand) :])
    }


@given(PIECES, st.integers(1, 3))
def test_the_end_is_never_an_ngrams(tokens: list[int], size: int) -> None:
    assert END not in forbidden([END, *tokens, END], 0, size)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.5, 0.3, 0.2]), (0.5, [25 / 38, 9 / 38, 4 / 38]), (1e9, [1 / 3] * 3), (1e-300, [1, 0, 0])],
)
def test_draws_are_as_frequent_as_the_probabilities_under_the_temperature(
    temperature: float, expected: list[float]
) -> None:
    assert frequencies(log(0.5, 0.3, 0.2), temperature) == pytest.approx(expected, abs=1.1e-3)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1, 0, 0, 0]),
        (0.5, [1, 0, 0, 0]),  # reached, not exceeded
        (0.51, [2 / 3, 1 / 3, 0, 0]),
        (0.74, [2 / 3, 1 / 3, 0, 0]),
        (0.76, [4 / 7, 2 / 7, 1 / 7, 0]),
        (1.0, [4 / 8, 2 / 8, 1 / 8, 1 / 8]),
    ],
)
def test_the_nucleus_is_the_fewest_that_reach_top_p(top_p: float, expected: list[float]) -> None:
    assert frequencies(log(0.5, 0.25, 0.125, 0.125), top_p=top_p) == pytest.approx(expected, abs=1.1e-3)


def test_candidates_need_not_sum_to_one_and_the_nucleus_is_taken_after_the_temperature() -> None:
    few = log(0.005, 0.0025, 0.00125, 0.00125)
    assert frequencies(few, top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1.1e-3)
    assert frequencies(few, temperature=0.5, top_p=0.6) == [1, 0, 0, 0]
    assert frequencies([-5000.0, -5000.0 - math.log(3)]) == [0.75, 0.25]


@given(
    st.lists(st.floats(-60, 0), min_size=1, max_size=50),
    st.floats(0.01, 100),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_the_first_whose_cumulated_probability_is_above_the_number(
    log_probabilities: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    log_probabilities.sort(reverse=True)
    index = draw(log_probabilities, temperature, top_p, uniform)
    weights = [math.exp((value - log_probabilities[0]) / temperature) for value in log_probabilities]
    kept = next(
        count for count in range(1, len(weights) + 1) if sum(weights[:count]) >= top_p * sum(weights) * (1 - 1e-12)
    )
    assert 0 <= index < len(weights)
    # Whatever the rounding: the draw lies where the sums, a hair to either side, say it must.
    assert sum(weights[: index + 1]) >= uniform * sum(weights[:kept]) * (1 - 1e-12)
    assert sum(weights[:index]) <= uniform * sum(weights[: max(kept, index + 1)]) * (1 + 1e-12)
    assert sum(weights[:index]) < top_p * sum(weights) * (1 + 1e-12)


def test_single_precision_is_drawn_from_in_double() -> None:
    single = np.log(np.linspace(2, 1, 40, dtype=np.float32))
    for uniform in np.linspace(0, 1, 100, endpoint=False):
        assert draw(single, 0.7, 0.9, uniform) == draw(single.astype(np.float64).tolist(), 0.7, 0.9, uniform)


def test_a_number_that_a_cumulated_sum_equals_draws_the_next() -> None:
    assert [draw([-1.0] * 4, 1.0, 1.0, uniform) for uniform in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]


def test_the_largest_number_below_one_draws_the_last_and_nought_the_first() -> None:
    for count in range(1, 60):
        even = [-math.log(count)] * count
        assert draw(even, 1.0, 1.0, math.nextafter(1, 0)) == count - 1
        assert draw(even, 1.0, 1.0, 0.0) == 0


def test_numbers_are_those_of_philox_for_ever() -> None:
    assert generator(0, 0).random(3).tolist() == [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]
    assert generator(2**64 - 1, 1).random() != generator(2**64 - 1, 0).random() != generator(0, 1).random()
    with pytest.raises(OverflowError):
        generator(-1, 0)
