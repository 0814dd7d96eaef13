"""The engine's searches against `model.search`, fed with the very numbers that it sees."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import search as oracle
from model.config import ModelConfig
from model.tokenizer import END
from model.transformer import Transformer
from serving.engine.decoding import Decoding, Sampling
from serving.engine.search import Beam, Candidates, Hypothesis, Search, Single, search_for
from tests.serving.engine.reference import expected

VOCABULARY = 14


@functools.cache
def model(seed: int) -> Transformer:
    """Few pieces and strong preferences, the end among them, so that hypotheses of all lengths compete."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocabulary=VOCABULARY,
        width=16,
        heads=2,
        feed_forward=32,
        encoder_layers=1,
        decoder_layers=1,
        tied_embeddings=False,
        max_positions=40,
        dropout=0.0,
    )
    built = Transformer(config).eval().requires_grad_(False)
    for name, weight in built.named_parameters():
        if weight.ndim > 1 and "embedding" not in name:
            weight.mul_(4)
    built.target_embedding.weight.mul_(0.1)  # else each token is most of all followed by itself
    nn.init.normal_(built.projection.weight, std=0.4)
    return built


SOURCE = torch.tensor([5, 9, 6, 13, 4, END])


@torch.inference_mode()
def searched(model: Transformer, source: torch.Tensor, decoding: Decoding, more: int = 0) -> list[Hypothesis]:
    """What `serving.engine.search` makes of it when told ``more`` tokens than it wants, as beside others that want more."""
    search = search_for(decoding)
    encoded = oracle._encode(model, source)
    rows: list[list[int]] = [[]]
    for _ in range(decoding.max_tokens):
        step = oracle._next_log_probabilities(
            model, encoded, [oracle.Hypothesis(tokens, [], finished=False) for tokens in rows]
        )
        following = search.advance(candidates(step, search, more))
        assert len(following) <= decoding.beam_size
        rows = [[*rows[parent], token] for parent, token in following]
        if not rows:
            return search.hypotheses
    raise AssertionError("the search goes on after its last token")


def candidates(step: Any, search: Search, more: int) -> list[Candidates]:
    count = min(search.wanted + more, VOCABULARY)
    given = search.given or 0
    best = [oracle._likeliest(row, count) for row in step]
    return [Candidates(tokens, row[tokens].tolist(), float(row[given])) for tokens, row in zip(best, step, strict=True)]


def same(found: Sequence[Hypothesis], expected: Sequence[oracle.Hypothesis]) -> None:
    """Token for token and bit for bit."""
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.log_probabilities for each in found] == [each.log_probabilities for each in expected]
    assert [each.finish_reason == "stop" for each in found] == [each.finished for each in expected]
    assert [each.score for each in found] == [each.score for each in expected]


TOKENS = st.integers(4, VOCABULARY - 1)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([1, 2, 5, 50]),
    top_p=st.sampled_from([0.05, 0.7, 1.0]),
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 3),
)


@st.composite
def decodings(draw: Any) -> Decoding:
    beam_size = draw(st.sampled_from([1, 2, 4, 7]))
    return Decoding(
        max_tokens=draw(st.integers(1, 12)),
        min_tokens=draw(st.integers(0, 8)),
        beam_size=beam_size,
        alternatives=draw(st.integers(1, beam_size)),
        length_penalty=draw(st.sampled_from([0.0, 0.6, 1.0, 2.0])),
        no_repeat_ngram=draw(st.integers(0, 3)),
        prefix=tuple(draw(st.lists(TOKENS, max_size=4))),
        sampling=draw(st.none() | SAMPLINGS) if beam_size == 1 else None,
    )


@settings(max_examples=150)
@given(seed=st.integers(0, 5), decoding=decodings(), more=st.sampled_from([0, 0, 1, VOCABULARY]))
def test_every_search_is_the_references_bit_for_bit(seed: int, decoding: Decoding, more: int) -> None:
    found = searched(model(seed), SOURCE, decoding, more)
    same(found, expected(model(seed), SOURCE, decoding))


@pytest.mark.parametrize("seed", range(6))
def test_greedy_search_is_the_references_argmax(seed: int) -> None:
    [found] = searched(model(seed), SOURCE, Decoding(12))
    same([found], oracle.greedy(model(seed), SOURCE[None], torch.tensor([len(SOURCE)]), [12]))


def test_the_models_end_hypotheses_at_all_lengths() -> None:
    """Else the tests above would be about little."""
    searches = [Decoding(12, beam_size=size, alternatives=size) for size in (1, 4, 7)]
    searches += [Decoding(12, sampling=Sampling(seed=seed)) for seed in range(10)]
    found = [hypothesis for seed in range(6) for each in searches for hypothesis in searched(model(seed), SOURCE, each)]
    assert {len(each.tokens) for each in found} == set(range(1, 13))
    assert {each.finish_reason for each in found} == {"stop", "length"}
    assert len({tuple(each.tokens) for each in found}) > 60


@settings(max_examples=60)
@given(seed=st.integers(0, 5), decoding=decodings())
def test_hypotheses_keep_the_rules(seed: int, decoding: Decoding) -> None:
    found = searched(model(seed), SOURCE, decoding)
    assert 1 <= len(found) <= decoding.alternatives
    ranks = [each.score / len(each.tokens) ** decoding.length_penalty for each in found]
    assert ranks == sorted(ranks, reverse=True)
    assert len({tuple(each.tokens) for each in found}) == len(found)
    for each in found:
        assert len(each.tokens) == len(each.log_probabilities) <= decoding.max_tokens
        assert tuple(each.tokens[: len(decoding.prefix)]) == decoding.prefix[: decoding.max_tokens]
        assert each.finish_reason == ("stop" if each.tokens[-1] == END else "length")
        assert END not in each.tokens[:-1]
        if each.finish_reason == "stop":
            assert len(each.tokens) >= decoding.min_tokens
        else:
            assert len(each.tokens) == decoding.max_tokens


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_prefix_is_given_one_token_a_step_in_one_row_and_scored(size: int) -> None:
    prefix = (4, 4, 9)
    search = search_for(Decoding(5, beam_size=size, prefix=prefix, no_repeat_ngram=1, min_tokens=5))
    for place, token in enumerate(prefix):
        assert search.given == token
        # The best ones, which are not the prefix', are none of its business.
        assert search.advance([Candidates([7, 8], [-0.1, -0.2], -5.0 - place)]) == [(0, token)]
    assert search.given is None
    ranked = [7, 8, 10, 11, 12, 13, 5, 6]
    rows = search.advance([Candidates(ranked, [-0.1 * place for place in range(1, 9)], 0.0)])
    assert rows == [(0, token) for token in ranked[:size]]
    assert search.given is None


@pytest.mark.parametrize("sampling", [None, Sampling(seed=3)])
def test_a_prefix_as_long_as_the_limit_is_the_whole(sampling: Sampling | None) -> None:
    for prefix in ((4, 9), (4, 9, 5, 6)):
        for size in (1,) if sampling else (1, 3):
            decoding = Decoding(2, beam_size=size, prefix=prefix, sampling=sampling)
            [found] = searched(model(0), SOURCE, decoding)
            assert (found.tokens, found.finish_reason) == ([4, 9], "length")


def test_a_prefix_takes_no_random_number() -> None:
    """What follows it is drawn as if nothing stood before it."""
    step = [Candidates([5, 6, 7, 8], [-1.0, -1.1, -1.2, -1.3], -9.0)]
    for seed in range(20):
        free, led = (search_for(Decoding(9, sampling=Sampling(seed=seed), prefix=prefix)) for prefix in ((), (4, 9)))
        assert [led.advance(step) for _ in range(2)] == [[(0, 4)], [(0, 9)]]
        assert [led.advance(step) for _ in range(5)] == [free.advance(step) for _ in range(5)]


def test_samples_follow_their_seed_and_stream() -> None:
    def sample(seed: int, stream: int) -> tuple[int, ...]:
        [found] = searched(model(2), SOURCE, Decoding(12, sampling=Sampling(2.0, seed=seed, stream=stream)))
        return tuple(found.tokens)

    drawn = {(seed, stream): sample(seed, stream) for seed in range(6) for stream in range(6)}
    assert drawn == {key: sample(*key) for key in drawn}
    assert len(set(drawn.values())) > 30


def test_the_smallest_nucleus_and_the_coldest_draw_are_greedy() -> None:
    for seed in range(6):
        greedy = searched(model(seed), SOURCE, Decoding(12))
        for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=1e-6)):
            assert searched(model(seed), SOURCE, Decoding(12, sampling=sampling)) == greedy


def test_a_search_wants_as_many_tokens_more_as_may_be_forbidden() -> None:
    assert search_for(Decoding(9)).wanted == 1
    assert search_for(Decoding(9, sampling=Sampling(top_k=20))).wanted == 20
    assert search_for(Decoding(9, beam_size=4)).wanted == 8
    for size in (1, 2):
        search, wanted = search_for(Decoding(9, min_tokens=3, beam_size=size, no_repeat_ngram=1)), []
        for token in (5, 6, 7):
            wanted.append(search.wanted)
            step = Candidates([token, 8, 9, 10, 11, 12], [-0.1, -5.0, -6.0, -7.0, -8.0, -9.0], 0.0)
            search.advance([step] * (size if token > 5 else 1))
        forbidden = [1, 2, 2]  # the end; the end and what was written; two that were written
        assert wanted == [(1 if size == 1 else 2 * size) + count for count in forbidden]


def test_log_probabilities_are_those_of_the_whole_softmax_whatever_is_forbidden() -> None:
    """Nothing is made to sum to one again."""
    step = np.log(np.array([0.6, 0.3, 0.1]))
    search = Single(Decoding(3, min_tokens=3))
    assert search.advance([Candidates([END, 5, 6], step.tolist(), 0.0)]) == [(0, 5)]
    search.advance([Candidates([6, END, 5], step.tolist(), 0.0)])
    assert search.advance([Candidates([END, 5, 6], step.tolist(), 0.0)]) == []
    [found] = search.hypotheses
    assert found == Hypothesis([5, 6, END], [step[1], step[0], step[0]], "stop")


def test_of_equal_candidates_the_first_rows_go_on() -> None:
    """As in the reference, which sorts all rows' tokens in one stable order."""
    search = Beam(Decoding(9, beam_size=2))
    assert search.advance([Candidates([5, 6, 7, 8], [-1.0] * 4, 0.0)]) == [(0, 5), (0, 6)]
    assert search.advance([Candidates([9, 8, 7, 5], [-1.0] * 4, 0.0)] * 2) == [(0, 9), (0, 8)]


def test_a_beam_stops_when_as_many_have_ended_as_it_is_wide() -> None:
    search = Beam(Decoding(9, beam_size=2, alternatives=2, length_penalty=0.0))
    assert search.advance([Candidates([END, 5, 6, 7], [-1.0, -1.5, -2.0, -9.0], 0.0)]) == [(0, 5), (0, 6)]
    worse, better = (
        Candidates([7, 8, 9, END], [-1.0] * 4, 0.0),
        Candidates([END, 7, 8, 9], [-0.1, -3.0, -4.0, -5.0], 0.0),
    )
    assert search.advance([worse, better]) == []
    assert [(each.tokens, each.score) for each in search.hypotheses] == [([END], -1.0), ([6, END], -2.1)]


def test_a_beam_that_runs_into_its_limit_fills_up_with_its_best_open_hypotheses() -> None:
    search = Beam(Decoding(2, beam_size=3, alternatives=3))
    search.advance([Candidates([END, 5, 6, 7, 8, 9], [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], 0.0)])
    step = Candidates([10, 11, 12, 13, 4, 5], [-0.5, -1.0, -5.0, -6.0, -7.0, -8.0], 0.0)
    assert search.advance([step] * 3) == []
    assert {(tuple(each.tokens), each.finish_reason) for each in search.hypotheses} == {
        ((END,), "stop"),
        ((5, 10), "length"),
        ((5, 11), "length"),
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_vocabulary_that_the_rules_use_up_ends_the_search(seed: int) -> None:
    """A step that finds nothing allowed would end the engine, and everybody's requests with it."""
    no_word_twice = Decoding(40, no_repeat_ngram=1)
    for decoding in (no_word_twice, replace(no_word_twice, sampling=Sampling(2.0))):
        [found] = searched(model(seed), SOURCE, decoding)
        assert found.finish_reason == "stop"
        assert len(set(found.tokens)) == len(found.tokens) <= VOCABULARY
        [found] = searched(model(seed), SOURCE, replace(decoding, min_tokens=20))
        assert len(found.tokens) >= VOCABULARY  # of which one stand there twice: there is no other way
    for size in (2, 5):
        decoding = replace(no_word_twice, beam_size=size, alternatives=size)
        same(searched(model(seed), SOURCE, decoding), expected(model(seed), SOURCE, decoding))
        for found in searched(model(seed), SOURCE, replace(decoding, min_tokens=20)):
            assert len(set(found.tokens)) == len(found.tokens) == VOCABULARY - 1
            assert found.finish_reason == "length"
