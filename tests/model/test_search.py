from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.search import Hypothesis, beam, greedy
from model.tokenizer import END, START
from model.transformer import Transformer

Decisive = Callable[..., Transformer]
LENGTHS = torch.tensor([6, 1, 4, 5, 3, 2, 6, 6])
SOURCE = torch.randint(12, (8, 6), generator=torch.Generator().manual_seed(2))


def next_log_probabilities(model: Transformer, source: Tensor, tokens: list[int]) -> Tensor:
    target = torch.tensor([[START, *tokens]])
    with torch.no_grad():
        return model(source[None], torch.tensor([len(source)]), target)[0, -1].double().log_softmax(-1)


def argmax_loop(model: Transformer, source: Tensor, limit: int) -> Hypothesis:
    tokens: list[int] = []
    scores: list[float] = []
    while len(tokens) < limit and END not in tokens:
        step = next_log_probabilities(model, source, tokens)
        tokens.append(int(step.argmax()))
        scores.append(float(step.max()))
    return Hypothesis(tokens, scores, END in tokens)


def all_sequences(model: Transformer, source: Tensor, limit: int) -> list[Hypothesis]:
    found, live = [], [Hypothesis([], [], finished=False)]
    for hypothesis in live:  # which grows while it is read
        step = next_log_probabilities(model, source, hypothesis.tokens).tolist()
        for token, log_probability in enumerate(step):
            longer = Hypothesis(
                [*hypothesis.tokens, token], [*hypothesis.log_probabilities, log_probability], token == END
            )
            (found if longer.finished or len(longer.tokens) == limit else live).append(longer)
    return found


def same(found: Hypothesis, expected: Hypothesis) -> None:
    assert found.tokens == expected.tokens
    assert found.finished is expected.finished
    assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=2e-5)


def test_greedy_in_a_batch_equals_an_argmax_loop_a_sentence(decisive: Decisive) -> None:
    model = decisive(seed=3)
    found = greedy(model, SOURCE, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        same(found[row], argmax_loop(model, SOURCE[row, :length], 2 * length + 10))
    assert {hypothesis.finished for hypothesis in found} == {True, False}


def test_greedy_in_a_batch_equals_greedy_alone(decisive: Decisive) -> None:
    model = decisive(seed=3)
    together = greedy(model, SOURCE, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        (alone,) = greedy(model, SOURCE[row : row + 1, :length], LENGTHS[row : row + 1])
        same(together[row], alone)


def test_greedy_of_a_deeper_model_equals_an_argmax_loop(tiny_model: Transformer) -> None:
    source = torch.randint(6, 800, (3, 10), generator=torch.Generator().manual_seed(1))
    found = greedy(tiny_model, source, torch.tensor([10, 7, 2]), [6, 6, 6])
    for row, length in enumerate((10, 7, 2)):
        same(found[row], argmax_loop(tiny_model, source[row, :length], 6))


def test_limits_are_kept_and_finished_is_honest(decisive: Decisive) -> None:
    model, limits = decisive(seed=3), [1, 2, 3, 5, 8, 13, 21, 40]
    found = greedy(model, SOURCE, LENGTHS, limits)
    for hypothesis, limit in zip(found, limits, strict=True):
        assert 1 <= len(hypothesis.tokens) <= limit
        assert hypothesis.finished is (hypothesis.tokens[-1] == END)
        assert END not in hypothesis.tokens[:-1]
        assert hypothesis.finished or len(hypothesis.tokens) == limit
        assert len(hypothesis.log_probabilities) == len(hypothesis.tokens)
    assert {hypothesis.finished for hypothesis in found} == {True, False}


def test_a_limit_only_cuts(decisive: Decisive) -> None:
    model = decisive(seed=3)
    whole, cut = greedy(model, SOURCE, LENGTHS, [20] * 8), greedy(model, SOURCE, LENGTHS, [3] * 8)
    assert [hypothesis.tokens[:3] for hypothesis in whole] == [hypothesis.tokens for hypothesis in cut]


def test_the_default_limit_is_that_of_the_model(decisive: Decisive) -> None:
    model = decisive(seed=3)
    with torch.no_grad():
        model.projection.weight[END] = 0  # The mean of random rows: never the likeliest.
    found = greedy(model, SOURCE, LENGTHS)
    assert [len(hypothesis.tokens) for hypothesis in found] == [2 * length + 10 for length in LENGTHS.tolist()]
    (longest,) = beam(model, SOURCE[0].repeat(5), 1)
    assert len(longest.tokens) == model.config.max_positions == 40


def test_score_is_the_sum_of_log_probabilities() -> None:
    assert Hypothesis([4, 5, END], [-0.5, -1.0, -0.25], finished=True).score == -1.75


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(decisive: Decisive, seed: int) -> None:
    model = decisive(seed=seed)
    for hypothesis, source, length in zip(greedy(model, SOURCE, LENGTHS), SOURCE, LENGTHS.tolist(), strict=True):
        (found,) = beam(model, source[:length], 1)
        same(found, hypothesis)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(("vocabulary", "limit"), [(5, 4), (6, 3)])
def test_a_beam_wide_enough_ranks_every_sequence(
    decisive: Decisive, vocabulary: int, limit: int, length_penalty: float
) -> None:
    model, source = decisive(vocabulary=vocabulary, seed=3, std=0.4), torch.tensor([4, 0, 4, 2])
    everything = all_sequences(model, source, limit)
    assert len(everything) == sum((vocabulary - 1) ** n for n in range(limit)) + (vocabulary - 1) ** limit
    assert sum(2.718281828459045**hypothesis.score for hypothesis in everything) == pytest.approx(1)
    everything.sort(key=lambda hypothesis: -hypothesis.score / len(hypothesis.tokens) ** length_penalty)
    found = beam(model, source, len(everything), length_penalty, limit)
    assert len(found) == len(everything)
    for mine, theirs in zip(found, everything, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 8])
def test_a_beam_gives_distinct_hypotheses_with_true_probabilities(decisive: Decisive, beam_size: int) -> None:
    model, source = decisive(seed=2, std=0.5), SOURCE[3, :5]
    found = beam(model, source, beam_size, limit=7)
    assert len({tuple(hypothesis.tokens) for hypothesis in found}) == len(found) == beam_size
    for hypothesis in found:
        assert hypothesis.finished is (hypothesis.tokens[-1] == END)
        assert hypothesis.finished or len(hypothesis.tokens) == 7
        for place, token in enumerate(hypothesis.tokens):
            step = next_log_probabilities(model, source, hypothesis.tokens[:place])
            assert hypothesis.log_probabilities[place] == pytest.approx(float(step[token]), abs=2e-5)


def test_a_wider_beam_can_find_what_greedy_misses(decisive: Decisive) -> None:
    better = 0
    for seed in range(8):
        model = decisive(vocabulary=5, seed=seed, std=0.5)
        one, four = (beam(model, SOURCE[0] % 5, size, length_penalty=0.0, limit=3)[0] for size in (1, 4))
        best = max(all_sequences(model, SOURCE[0] % 5, 3), key=lambda hypothesis: hypothesis.score)
        assert one.score <= best.score + 1e-5
        assert four.score <= best.score + 1e-5
        better += four.score > one.score + 1e-3
    assert better > 0


def test_length_penalty_ranks_by_score_over_a_power_of_the_length(decisive: Decisive) -> None:
    model, source = decisive(vocabulary=6, seed=3, std=0.1), SOURCE[0] % 6
    bests = []
    for length_penalty in (0.0, 1.0, 3.0):
        found = beam(model, source, 400, length_penalty, limit=3)
        ranks = [hypothesis.score / len(hypothesis.tokens) ** length_penalty for hypothesis in found]
        assert ranks == sorted(ranks, reverse=True)
        bests.append(found[0].tokens)
    assert len(bests[0]) < len(bests[-1])


@pytest.mark.parametrize("size", [0, 1])
def test_the_limit_holds_the_search_within_the_positions(decisive: Decisive, size: int) -> None:
    model: Transformer = decisive(seed=3)
    config: ModelConfig = model.config
    source = SOURCE[:1].repeat(1, 6)[:, : config.max_positions - size]
    (hypothesis,) = greedy(model, source, torch.tensor([source.shape[1]]))
    assert len(hypothesis.tokens) <= config.max_positions
