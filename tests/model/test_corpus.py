from collections import Counter
from itertools import islice

import numpy as np
import pytest

from model.corpus import Batch, Corpus, pad
from model.pairs import Pair
from model.tokenizer import END, PADDING, START, Tokenizer


def test_rows_are_padded_at_the_end() -> None:
    padded = pad([np.array(row, np.int32) for row in ([7, 8, 9], [5], [6, 6])])
    assert padded.dtype == np.int32
    assert padded.tolist() == [[7, 8, 9], [5, PADDING, PADDING], [6, 6, PADDING]]


def make(count: int, weight: float = 1.0, seed: int = 0, longest: int = 60) -> Corpus:
    random = np.random.default_rng(seed)
    sources, targets = (
        [np.full(n, row, np.int32) for row, n in enumerate(random.integers(1, longest, count))] for _ in "st"
    )
    return Corpus(sources, targets, np.full(count, weight, np.float32))


def padded_tokens(corpus: Corpus, rows: np.ndarray) -> int:
    return int(corpus.lengths[rows].max(0).sum() * len(rows))


def rows_of(plan: list[np.ndarray]) -> list[list[int]]:
    return [rows.tolist() for rows in plan]


def test_a_plan_depends_on_seed_and_epoch_alone() -> None:
    plans = {key: rows_of(make(500).plan(800, *key)) for key in ((1, 0), (1, 1), (2, 0), (0, 1))}
    for key, plan in plans.items():
        assert rows_of(make(500).plan(800, *key)) == plan
    assert len({str(plan) for plan in plans.values()}) == len(plans)
    assert len({str(sorted(plan)) for plan in plans.values()}) == len(plans)


@pytest.mark.parametrize("tokens", [1, 60, 500, 10_000, 10**9])
def test_a_batch_keeps_the_budget_unless_it_is_a_single_pair(tokens: int) -> None:
    corpus = make(300)
    plan = corpus.plan(tokens, 3, 0)
    assert all(len(rows) == 1 or padded_tokens(corpus, rows) <= tokens for rows in plan)
    assert Counter(np.concatenate(plan).tolist()) == Counter(range(300))
    if tokens == 10**9:
        assert len(plan) == 1
    if tokens == 1:
        assert len(plan) == 300


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0])
def test_a_whole_weight_is_how_often_a_pair_appears(weight: float) -> None:
    corpus = make(200, weight)
    for epoch in range(3):
        counts = Counter(np.concatenate(corpus.plan(500, 1, epoch)).tolist())
        assert counts == dict.fromkeys(range(200), weight)


def test_weight_zero_never_appears() -> None:
    corpus = make(200)
    corpus.weights[:150] = 0
    for epoch in range(3):
        assert sorted(np.concatenate(corpus.plan(500, 1, epoch)).tolist()) == list(range(150, 200))


@pytest.mark.parametrize("weight", [0.25, 1.5])
def test_a_fraction_is_a_chance_drawn_anew_in_every_pass(weight: float) -> None:
    corpus = make(4000, weight)
    passes = [np.bincount(np.concatenate(corpus.plan(5000, 1, epoch)), minlength=4000) for epoch in (0, 1)]
    for counts in passes:
        assert set(counts) == {int(weight), int(weight) + 1}
        assert counts.mean() == pytest.approx(weight, abs=0.04)
    assert (passes[0] != passes[1]).mean() > 0.2


def test_a_pass_that_draws_no_pair_has_no_batch() -> None:
    corpus = make(1, 0.5)
    plans = [rows_of(corpus.plan(100, 1, epoch)) for epoch in range(20)]
    assert [[0]] in plans
    assert [] in plans
    assert len(list(islice(corpus.batches(100, 1), 5))) == 5


@pytest.mark.parametrize("corpus", [make(0), make(5, 0.0)], ids=["no pairs", "no weight"])
def test_a_corpus_that_never_gives_a_pair_is_a_value_error(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="no pair"):
        next(corpus.batches(100, 1))


def encoded(sentences: list[str], tokenizer: Tokenizer, longest: int = 10**6, **weights: float) -> Corpus:
    pairs = [Pair(text, text.upper(), ("even", "odd")[number % 2]) for number, text in enumerate(sentences)]
    return Corpus.encode(pairs, tokenizer, "de", longest, weights)


def test_joined_corpora_follow_each_other(sentences: list[str], tiny_tokenizer: Tokenizer) -> None:
    one, other = encoded(sentences[:20], tiny_tokenizer), encoded(sentences[20:50], tiny_tokenizer, odd=0.5)
    joined, whole = Corpus.join([one, other]), encoded(sentences[:50], tiny_tokenizer)
    assert [ids.tolist() for ids in joined.sources] == [ids.tolist() for ids in whole.sources]
    assert [ids.tolist() for ids in joined.targets] == [ids.tolist() for ids in whole.targets]
    assert joined.lengths.tolist() == whole.lengths.tolist()
    assert joined.weights.tolist() == [*one.weights, *other.weights]


def test_padding_is_a_small_share(sentences: list[str], tiny_tokenizer: Tokenizer) -> None:
    corpus = encoded(sentences, tiny_tokenizer)
    plan = corpus.plan(1000, 1, 0)
    padded = sum(padded_tokens(corpus, rows) for rows in plan)
    assert 1 - corpus.lengths.sum() / padded < 0.08
    assert len(plan) < 1.25 * padded / 1000


def test_origins_weigh_what_they_are_given(sentences: list[str], tiny_tokenizer: Tokenizer) -> None:
    corpus = encoded(sentences, tiny_tokenizer, odd=0.5)
    assert corpus.weights.tolist() == [1.0, 0.5] * 150


@pytest.mark.parametrize("longest", [10, 40])
def test_pairs_too_long_or_empty_are_left_out(longest: int, sentences: list[str], tiny_tokenizer: Tokenizer) -> None:
    corpus = encoded(["", " \n", *sentences], tiny_tokenizer, longest)
    fitting = [
        text
        for text in sentences
        if len(tiny_tokenizer.source(text, "de")) <= longest and len(tiny_tokenizer.target(text.upper())) <= longest
    ]
    assert 0 < len(corpus) < len(sentences)
    assert [ids.tolist() for ids in corpus.sources] == [tiny_tokenizer.source(text, "de") for text in fitting]
    assert [ids.tolist() for ids in corpus.targets] == [tiny_tokenizer.target(text.upper()) for text in fitting]


def test_the_arrays_of_a_batch_line_up(sentences: list[str], tiny_tokenizer: Tokenizer) -> None:
    corpus = encoded(sentences, tiny_tokenizer)
    rows = np.array([5, 0, 17, 40])
    batch = corpus.batch(rows)
    assert batch.target.shape == batch.labels.shape
    for place, row in enumerate(rows.tolist()):
        text, length = sentences[row], len(tiny_tokenizer.target(sentences[row].upper()))
        source = batch.source[place, : batch.source_lengths[place]]
        assert source.tolist() == tiny_tokenizer.source(text, "de")
        assert (batch.source[place, batch.source_lengths[place] :] == PADDING).all()
        assert batch.target[place, 0] == START
        assert batch.labels[place, :length].tolist() == tiny_tokenizer.target(text.upper())
        assert batch.labels[place, length - 1] == END
        assert batch.target[place, 1:length].tolist() == batch.labels[place, : length - 1].tolist()
        assert (batch.target[place, length:] == PADDING).all()
        assert (batch.labels[place, length:] == PADDING).all()


@pytest.mark.parametrize("passes", [0, 0.1, 0.99, 1, 1.1, 2.5])
def test_batches_from_the_nth_on_are_those_left_after_skipping(passes: float) -> None:
    corpus = make(120, 1.5)
    first = int(passes * len(corpus.plan(500, 4, 0)))

    def contents(batch: Batch) -> list[list[list[int]] | list[int]]:
        return [array.tolist() for array in (batch.source, batch.source_lengths, batch.target, batch.labels)]

    expected = [contents(batch) for batch in islice(corpus.batches(500, 4), first, first + 30)]
    assert [contents(batch) for batch in islice(corpus.batches(500, 4, first=first), 30)] == expected
