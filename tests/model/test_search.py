import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.search import Hypothesis, beam, greedy, sample
from model.tokenizer import END, START
from model.transformer import Transformer

Decisive = Callable[..., Transformer]
LENGTHS = torch.tensor([6, 1, 4, 5, 3, 2, 6, 6])
SOURCE = torch.randint(12, (8, 6), generator=torch.Generator().manual_seed(2))


def next_log_probabilities(model: Transformer, source: Tensor, tokens: list[int]) -> Tensor:
    target = torch.tensor([[START, *tokens]])
    with torch.no_grad():
        return model(source[None], torch.tensor([len(source)]), target)[0, -1].double().log_softmax(-1)


def repeats(tokens: list[int], size: int) -> bool:
    """Whether an n-gram of ``size`` tokens, the end token aside, stands twice in ``tokens``."""
    text = [token for token in tokens if token != END]
    ngrams = [tuple(text[place : place + size]) for place in range(len(text) - size + 1)]
    return len(set(ngrams)) < len(ngrams)


def allowed(tokens: list[int], token: int, min_tokens: int = 0, no_repeat_ngram: int = 0) -> bool:
    if token == END:
        return len(tokens) + 1 >= min_tokens
    return not no_repeat_ngram or tuple([*tokens, token][-no_repeat_ngram:]) not in {
        tuple(tokens[place : place + no_repeat_ngram]) for place in range(len(tokens) - no_repeat_ngram + 1)
    }


def argmax_loop(
    model: Transformer, source: Tensor, limit: int, prefix: tuple[int, ...] = (), **rules: int
) -> Hypothesis:
    tokens: list[int] = []
    scores: list[float] = []
    while len(tokens) < limit and END not in tokens:
        step = next_log_probabilities(model, source, tokens).tolist()
        candidates = [token for token in range(len(step)) if allowed(tokens, token, **rules)]
        best = max(candidates, key=lambda token: step[token])
        tokens.append(prefix[len(tokens)] if len(tokens) < len(prefix) else best)
        scores.append(step[tokens[-1]])
    return Hypothesis(tokens, scores, END in tokens)


def all_sequences(
    model: Transformer, source: Tensor, limit: int, prefix: tuple[int, ...] = (), **rules: int
) -> list[Hypothesis]:
    """Every sequence that the rules allow, with its probability, if it has ended or has ``limit`` tokens."""
    found, live = [], [Hypothesis([], [], finished=False)]
    for hypothesis in live:  # which grows while it is read
        step = next_log_probabilities(model, source, hypothesis.tokens).tolist()
        forced = prefix[len(hypothesis.tokens) :][:1]
        for token, log_probability in enumerate(step):
            if token not in forced if forced else not allowed(hypothesis.tokens, token, **rules):
                continue
            longer = Hypothesis(
                [*hypothesis.tokens, token], [*hypothesis.log_probabilities, log_probability], token == END
            )
            (found if longer.finished or len(longer.tokens) == limit else live).append(longer)
    return found


def same(found: Hypothesis, expected: Hypothesis) -> None:
    assert found.tokens == expected.tokens
    assert found.finished is expected.finished
    assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=2e-5)


def is_scored_as_taught(model: Transformer, source: Tensor, hypothesis: Hypothesis) -> None:
    """Its log-probabilities are those of the whole softmax, teacher-forced."""
    target = torch.tensor([[START, *hypothesis.tokens[:-1]]])
    with torch.no_grad():
        steps = model(source[None], torch.tensor([len(source)]), target)[0].double().log_softmax(-1)
    expected = steps.gather(1, torch.tensor(hypothesis.tokens)[:, None])[:, 0].tolist()
    assert hypothesis.log_probabilities == pytest.approx(expected, abs=2e-5)


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
    (longest,) = greedy(model, SOURCE[:1].repeat(1, 5), torch.tensor([30]))
    assert len(longest.tokens) == model.config.max_positions == 40


def test_score_is_the_sum_of_log_probabilities() -> None:
    assert Hypothesis([4, 5, END], [-0.5, -1.0, -0.25], finished=True).score == -1.75


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(decisive: Decisive, seed: int) -> None:
    model = decisive(seed=seed)
    for hypothesis, source, length in zip(greedy(model, SOURCE, LENGTHS), SOURCE, LENGTHS.tolist(), strict=True):
        (found,) = beam(model, source[:length], max_tokens=model.config.default_limit(length))
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
    found = beam(model, source, max_tokens=limit, beam_size=len(everything), length_penalty=length_penalty)
    assert len(found) == len(everything)
    for mine, theirs in zip(found, everything, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 8])
def test_a_beam_gives_distinct_hypotheses_with_true_probabilities(decisive: Decisive, beam_size: int) -> None:
    model, source = decisive(seed=2, std=0.5), SOURCE[3, :5]
    found = beam(model, source, max_tokens=7, beam_size=beam_size)
    assert len({tuple(hypothesis.tokens) for hypothesis in found}) == len(found) == beam_size
    for hypothesis in found:
        assert hypothesis.finished is (hypothesis.tokens[-1] == END)
        assert hypothesis.finished or len(hypothesis.tokens) == 7
        is_scored_as_taught(model, source, hypothesis)


def test_a_wider_beam_can_find_what_greedy_misses(decisive: Decisive) -> None:
    better = 0
    for seed in range(8):
        model = decisive(vocabulary=5, seed=seed, std=0.5)
        one, four = (beam(model, SOURCE[0] % 5, max_tokens=3, beam_size=size, length_penalty=0.0)[0] for size in (1, 4))
        best = max(all_sequences(model, SOURCE[0] % 5, 3), key=lambda hypothesis: hypothesis.score)
        assert one.score <= best.score + 1e-5
        assert four.score <= best.score + 1e-5
        better += four.score > one.score + 1e-3
    assert better > 0


def test_length_penalty_ranks_by_score_over_a_power_of_the_length(decisive: Decisive) -> None:
    model, source = decisive(vocabulary=6, seed=3, std=0.1), SOURCE[0] % 6
    bests = []
    for length_penalty in (0.0, 1.0, 3.0):
        found = beam(model, source, max_tokens=3, beam_size=400, length_penalty=length_penalty)
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


RULES: list[dict[str, Any]] = [
    {},
    {"min_tokens": 6},
    {"min_tokens": 100},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 3, "min_tokens": 5},
    {"prefix": (7,)},
    {"prefix": (5, 5, 5, 5), "no_repeat_ngram": 2, "min_tokens": 8},
]


@pytest.mark.parametrize("rules", RULES)
def test_a_beam_of_one_is_an_argmax_loop_under_any_rules(decisive: Decisive, rules: dict[str, Any]) -> None:
    bent = 0
    for seed in range(2):
        model = decisive(seed=seed)
        for source, length in zip(SOURCE[:3], LENGTHS.tolist(), strict=False):
            (found,) = beam(model, source[:length], max_tokens=9, **rules)
            same(found, argmax_loop(model, source[:length], 9, **rules))
            bent += found.tokens != argmax_loop(model, source[:length], 9).tokens
    assert bool(bent) is bool(rules)


@pytest.mark.parametrize(
    ("vocabulary", "max_tokens", "rules"),
    [
        (5, 4, {"min_tokens": 3}),
        (5, 4, {"min_tokens": 5}),
        (5, 4, {"no_repeat_ngram": 2}),
        (5, 7, {"no_repeat_ngram": 1}),  # which only the end token can follow after four
        (6, 5, {"prefix": (4, 4)}),
        (6, 5, {"prefix": (2, 4, 2), "no_repeat_ngram": 2, "min_tokens": 5}),
        (5, 5, {"prefix": (1,), "no_repeat_ngram": 1, "min_tokens": 4}),
    ],
)
def test_a_beam_wide_enough_ranks_every_sequence_that_the_rules_allow(
    decisive: Decisive, vocabulary: int, max_tokens: int, rules: dict[str, Any]
) -> None:
    model, source = decisive(vocabulary=vocabulary, seed=3, std=0.4), torch.tensor([4, 0, 4, 2])
    everything = all_sequences(model, source, max_tokens, **rules)
    everything.sort(key=lambda hypothesis: -hypothesis.score / len(hypothesis.tokens) ** 0.6)
    found = beam(model, source, max_tokens=max_tokens, beam_size=len(everything) + 1, length_penalty=0.6, **rules)
    assert len(found) == len(everything) > 5
    for mine, theirs in zip(found, everything, strict=True):
        same(mine, theirs)


def keeps(hypothesis: Hypothesis, max_tokens: int, prefix: tuple[int, ...] = (), **rules: int) -> None:
    """That no rule is broken, which the tokens of the prefix alone may."""
    tokens = hypothesis.tokens
    assert tuple(tokens[: len(prefix)]) == prefix
    assert all(allowed(tokens[:place], tokens[place], **rules) for place in range(len(prefix), len(tokens)))
    assert hypothesis.finished is (tokens[-1] == END)
    assert END not in tokens[:-1]
    assert len(tokens) <= max_tokens
    assert hypothesis.finished or len(tokens) == max_tokens
    assert not hypothesis.finished or len(tokens) >= rules.get("min_tokens", 0)
    if "no_repeat_ngram" in rules and not prefix:
        assert not repeats(tokens, rules["no_repeat_ngram"])


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("beam_size", [2, 4])
def test_a_narrow_beam_keeps_the_rules_and_scores_by_the_whole_softmax(
    decisive: Decisive, beam_size: int, rules: dict[str, Any]
) -> None:
    for seed in range(2):
        model = decisive(seed=seed, std=0.5)
        found = beam(model, SOURCE[0], max_tokens=9, beam_size=beam_size, **rules)
        assert len({tuple(hypothesis.tokens) for hypothesis in found}) == len(found) == beam_size
        for hypothesis in found:
            keeps(hypothesis, 9, **rules)
            is_scored_as_taught(model, SOURCE[0], hypothesis)


def every_continuation_beam(
    model: Transformer, source: Tensor, max_tokens: int, beam_size: int, prefix: tuple[int, ...] = (), **rules: int
) -> list[Hypothesis]:
    """The search over all that is allowed instead of twice the beam: it stops by itself before it is through that."""
    live, ended = [argmax_loop(model, source, len(prefix), prefix)], []
    for _ in range(len(prefix), max_tokens):
        following = [
            Hypothesis([*hypothesis.tokens, token], [*hypothesis.log_probabilities, log_probability], token == END)
            for hypothesis in live
            for token, log_probability in enumerate(next_log_probabilities(model, source, hypothesis.tokens).tolist())
            if allowed(hypothesis.tokens, token, **rules)
        ]
        live = []
        for hypothesis in sorted(following, key=lambda hypothesis: -hypothesis.score):
            if len(ended) < beam_size and len(live) < beam_size:
                (ended if hypothesis.finished else live).append(hypothesis)
        if len(ended) == beam_size:
            break
    ended = [*ended, *live][:beam_size]
    return sorted(ended, key=lambda hypothesis: -hypothesis.score / len(hypothesis.tokens))


@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("rules", [*RULES[:4], RULES[7]])
def test_twice_the_beam_of_what_is_allowed_is_enough(decisive: Decisive, beam_size: int, rules: dict[str, Any]) -> None:
    for seed in range(3):
        model = decisive(vocabulary=8, seed=seed, std=0.2)
        found = beam(model, SOURCE[0] % 8, max_tokens=8, beam_size=beam_size, **rules)
        expected = every_continuation_beam(model, SOURCE[0] % 8, 8, beam_size, **rules)
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, theirs)


@pytest.mark.parametrize("given", [1, 3, 6])
def test_a_prefix_that_the_search_would_have_written_changes_nothing(decisive: Decisive, given: int) -> None:
    model = decisive(seed=3)
    for source in SOURCE[:3]:
        (alone,) = beam(model, source, max_tokens=12, min_tokens=given + 1)
        (found,) = beam(model, source, max_tokens=12, min_tokens=given + 1, prefix=tuple(alone.tokens[:given]))
        same(found, alone)


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_a_prefix_counts_and_is_cut_at_the_most_tokens(decisive: Decisive, max_tokens: int) -> None:
    model, prefix = decisive(seed=3), (6, 6, 6)
    (found,) = beam(model, SOURCE[0], max_tokens=max_tokens, beam_size=4, prefix=prefix)
    drawn = sample(model, SOURCE[0], max_tokens=max_tokens, prefix=prefix)
    for hypothesis in (found, drawn):
        same(hypothesis, argmax_loop(model, SOURCE[0], max_tokens, prefix))
        assert hypothesis.tokens == [6] * max_tokens


def sampling_loop(
    model: Transformer,
    source: Tensor,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    stream: int = 0,
    prefix: tuple[int, ...] = (),
    **rules: int,
) -> Hypothesis:
    numbers = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
    tokens: list[int] = list(prefix)
    while len(tokens) < max_tokens and END not in tokens:
        step = next_log_probabilities(model, source, tokens).tolist()
        candidates = [token for token in range(len(step)) if allowed(tokens, token, **rules)]
        candidates.sort(key=lambda token: -step[token])
        weights = {token: math.exp(step[token] / temperature) for token in candidates[:top_k]}
        nucleus: dict[int, float] = {}
        for token, weight in weights.items():
            if sum(nucleus.values()) < top_p * sum(weights.values()):
                nucleus[token] = weight
        uniform = numbers.random() * sum(nucleus.values())
        for token, weight in nucleus.items():
            uniform -= weight
            if uniform < 0:
                tokens.append(token)
                break
    scores = [float(next_log_probabilities(model, source, tokens[:place])[token]) for place, token in enumerate(tokens)]
    return Hypothesis(tokens, scores, END in tokens)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "seed": 2**64 - 1, "stream": 2**64 - 1},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rules", [RULES[0], RULES[1], RULES[3], RULES[5], RULES[7]])
def test_sampling_equals_a_loop_over_the_definition(
    decisive: Decisive, settings: dict[str, Any], rules: dict[str, Any]
) -> None:
    model = decisive(seed=1, std=0.5)
    for stream in range(2):
        given = {"seed": 5, "stream": stream, **settings, **rules}
        found = sample(model, SOURCE[stream], max_tokens=11, **given)
        same(found, sampling_loop(model, SOURCE[stream], 11, **given))
        keeps(found, 11, **rules)


def test_sampling_is_the_same_for_a_seed_and_a_stream_and_differs_between_them(decisive: Decisive) -> None:
    model = decisive(seed=1, std=0.3)

    def tokens(seed: int, stream: int) -> list[int]:
        return sample(model, SOURCE[0], max_tokens=12, min_tokens=12, seed=seed, stream=stream).tokens

    written = {(seed, stream): tokens(seed, stream) for seed in range(2) for stream in range(2)}
    assert all(tokens(*key) == found for key, found in written.items())
    assert len({tuple(found) for found in written.values()}) == 4


def test_forced_tokens_take_no_number(decisive: Decisive) -> None:
    model = decisive(seed=1)
    with torch.no_grad():
        model.projection.weight.zero_()  # Every token is as likely as any other: the numbers alone decide.
    alone = sample(model, SOURCE[0], max_tokens=6, min_tokens=100)
    after = sample(model, SOURCE[0], max_tokens=9, min_tokens=100, prefix=(4, 4, 4))
    assert after.tokens == [4, 4, 4, *alone.tokens]


@pytest.mark.parametrize("settings", [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-9}])
def test_sampling_without_a_choice_is_greedy(decisive: Decisive, settings: dict[str, Any]) -> None:
    model = decisive(seed=3)
    for stream, source in enumerate(SOURCE[:2]):
        for rules in RULES[::2]:
            (expected,) = beam(model, source, max_tokens=8, **rules)
            same(sample(model, source, max_tokens=8, stream=stream, **settings, **rules), expected)


@pytest.mark.parametrize(("top_k", "temperature"), [(12, 1.0), (4, 1.0), (12, 0.5)])
def test_sampled_tokens_are_as_frequent_as_they_are_likely(decisive: Decisive, top_k: int, temperature: float) -> None:
    model, draws = decisive(seed=1, std=0.4), 300
    found = Counter(
        sample(
            model, SOURCE[0], max_tokens=1, min_tokens=2, top_k=top_k, temperature=temperature, seed=9, stream=stream
        ).tokens[0]
        for stream in range(draws)
    )
    step = next_log_probabilities(model, SOURCE[0], []) / temperature
    step[END] = -math.inf
    likeliest = step.topk(min(top_k, 11))
    expected = dict(zip(likeliest.indices.tolist(), (draws * likeliest.values.softmax(0)).tolist(), strict=True))
    assert set(found) <= set(expected)
    squares = sum((found[token] - count) ** 2 / count for token, count in expected.items())
    assert squares < len(expected) + 5 * math.sqrt(2 * len(expected))
