"""The choice of strategy on simulated steps: whatever is fastest is found, and found again when it changes."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from serving.runtime.threading_strategy import LEAST_OFTEN, MOST_OFTEN, Strategy, ThreadingStrategy

Seconds = Callable[[Strategy, int], float]


def run(
    strategy: ThreadingStrategy, steps: int, seconds: Seconds, rows: Callable[[int], int] = lambda step: 32
) -> Counter[Strategy]:
    """Take ``steps``; returns how often each strategy was taken."""
    taken: Counter[Strategy] = Counter()
    for step in range(steps):
        chosen = strategy.choose(rows(step))
        taken[chosen] += 1
        strategy.took(rows(step), chosen, seconds(chosen, step))
    return taken


def times(single: float, shared: float, lanes: float, noise: float = 0.0) -> Seconds:
    chance = random.Random(0)
    means: dict[Strategy, float] = {"single": single, "shared": shared, "lanes": lanes}

    def seconds(strategy: Strategy, step: int) -> float:
        # A step takes longer the more has been written.
        return means[strategy] * (1 + (step % 60) / 60) * (1 + noise * abs(chance.gauss(0, 1)))

    return seconds


def test_one_thread_has_no_choice_and_too_few_rows_have_no_lanes() -> None:
    assert ThreadingStrategy(1).possible(64) == ["single"]
    assert ThreadingStrategy(4).possible(3) == ["single", "shared"]
    assert ThreadingStrategy(4).possible(4) == ["single", "shared", "lanes"]
    assert run(ThreadingStrategy(1), 100, times(1, 1, 1)) == {"single": 100}


@pytest.mark.parametrize("fastest", ["single", "shared", "lanes"])
@pytest.mark.parametrize("first", ["single", "shared", "lanes"])
def test_whatever_was_chosen_at_the_start_the_fastest_is_found(first: Strategy, fastest: Strategy) -> None:
    strategy = ThreadingStrategy(2)
    strategy.begin(1, {name: 0.5 if name == first else 1.0 for name in strategy.possible(32)})
    assert strategy.chosen(32) == first
    means: dict[Strategy, float] = dict.fromkeys(strategy.possible(32), 1.0) | {fastest: 0.8}
    run(strategy, 1500, times(**means, noise=0.1))
    assert strategy.chosen(32) == fastest


def test_a_neighbour_that_comes_and_goes_is_noticed() -> None:
    strategy = ThreadingStrategy(2)
    idle, busy = times(1.0, 0.8, 0.6, noise=0.05), times(1.0, 1.8, 1.3, noise=0.3)
    for seconds, expected in ((idle, "lanes"), (busy, "single"), (idle, "lanes")):
        run(strategy, 2000, seconds)
        assert strategy.chosen(32) == expected


def test_trials_cost_little_and_the_nearest_is_tried_most() -> None:
    strategy, seconds = ThreadingStrategy(2), times(1.0, 1.1, 3.0)
    run(strategy, 1000, seconds)
    taken = run(strategy, 20_000, seconds)
    extra = taken["shared"] * 0.1 + taken["lanes"] * 2.0
    assert extra / 20_000 < 0.015
    assert 20_000 / LEAST_OFTEN * 0.8 < taken["lanes"] < taken["shared"] < 20_000 / MOST_OFTEN


def test_a_single_late_step_changes_nothing() -> None:
    """Of the trials that count the median does."""
    strategy, even = ThreadingStrategy(2), times(1.0, 1.05, 1.05)
    run(strategy, 2000, even)
    late = iter(range(10**6))

    def seconds(chosen: Strategy, step: int) -> float:
        return even(chosen, step) * (9 if chosen == "single" and next(late) % 50 == 0 else 1)

    run(strategy, 3000, seconds)
    assert strategy.chosen(32) == "single"


def test_numbers_of_rows_that_differ_much_are_chosen_for_apart() -> None:
    strategy = ThreadingStrategy(2)

    def seconds(chosen: Strategy, step: int) -> float:
        few = step // 50 % 2 == 0
        return {"single": 1.0, "shared": 1.5, "lanes": 1.5 if few else 0.6}[chosen]

    run(strategy, 4000, seconds, rows=lambda step: 4 if step // 50 % 2 == 0 else 64)
    assert (strategy.chosen(4), strategy.chosen(5), strategy.chosen(64)) == ("single", "single", "lanes")


def test_nothing_is_learnt_from_steps_whose_neighbours_have_other_rows() -> None:
    strategy = ThreadingStrategy(2)
    taken = run(strategy, 500, times(1.0, 0.1, 0.1), rows=lambda step: (4, 64)[step % 2])
    assert taken == {"single": 500}


@pytest.mark.parametrize("turns", [(64, 64, 4), (64, 64, 64, 4), (4, 64, 64, 4, 4)])
def test_trials_that_have_nothing_to_be_compared_with_are_seldom(turns: tuple[int, ...]) -> None:
    taken = run(ThreadingStrategy(2), 3000, times(1.0, 3.0, 3.0), rows=lambda step: turns[step % len(turns)])
    assert taken["shared"] + taken["lanes"] <= 2 * 2 * 3000 / MOST_OFTEN


def test_only_steps_of_one_kind_are_compared_and_the_first_of_a_binding_is_not() -> None:
    """A step that finds thirty tokens takes longer than its neighbours, whatever its strategy."""
    strategy = ThreadingStrategy(2)
    for step in range(3000):
        kind = (2, False) if step % 3 else (30, True)
        chosen = strategy.choose(32, kind)
        seconds = (1.0 if chosen == "single" else 1.1) * (5.0 if kind[1] else 1.0)
        strategy.took(32, chosen, None if step % 50 == 0 else seconds, kind)
    assert strategy.chosen(32) == "single"
    assert all(ratio < 1.2 for trials in strategy._bucket(32).trials.values() for ratio in trials)


@pytest.mark.parametrize("threads", [2, 3, 5, 7, 11, 16])
def test_lanes_are_never_more_than_rows(threads: int) -> None:
    strategy = ThreadingStrategy(threads)
    for step in range(4000):
        rows = 1 + step // 7 % 40
        chosen = strategy.choose(rows)
        assert chosen in strategy.possible(rows)
        assert chosen != "lanes" or rows >= threads
        strategy.took(rows, chosen, 0.5 if chosen == "lanes" else 1.0)


def test_what_was_measured_at_the_start_holds_until_trials_say_otherwise() -> None:
    strategy = ThreadingStrategy(2)
    strategy.begin(1, {"single": 1.0, "shared": 2.0})
    strategy.begin(16, {"single": 1.0, "shared": 0.7, "lanes": 0.6})
    assert [strategy.chosen(rows) for rows in (1, 15, 16, 400)] == ["single", "single", "lanes", "lanes"]
    assert run(strategy, MOST_OFTEN, times(1, 1, 1)) == {"lanes": MOST_OFTEN}
