"""The engine's contract: a request's numbers are its own, bit for bit, whatever else the engine does at the time."""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from export.bundle import locate
from export.exporter import Precision
from model.tokenizer import END, Tokenizer
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import Job, encoding, translation
from serving.engine.results import Translated
from tests.conftest import BASE, SMALL
from tests.serving.engine.engines import engine_of, mixed, soon


class Request(NamedTuple):
    source: list[int]
    decoding: Decoding | None
    """None asks for vectors: of a source of even length for all, of others for the pooled one."""

    def job(self) -> Job:
        deadline = soon() + 480
        if self.decoding:
            return translation(self.source, self.decoding, deadline)
        return encoding(self.source, deadline, pooled=len(self.source) % 2 == 1)


def requests(sources: Sequence[list[int]], count: int, longest_source: int, longest_target: int) -> list[Request]:
    """All ``sources``, and then slices and combinations of them; one in ten is for vectors."""
    choices, found = random.Random(0), [source for source in sources if len(source) <= longest_source]
    while len(found) < count:
        one, other = choices.sample(sources, 2)
        words = one[1:-1] + other[1:-1]
        begin = choices.randrange(len(words) + 1)
        length = min(longest_source - 2, round(choices.expovariate(0.02)))
        found.append([one[0], *words[begin : begin + length], END])
    found = found[:count]
    decodings = mixed(found, seed=1, longest=longest_target)
    return [
        Request(source, None if choices.random() < 0.1 else decoding)
        for source, decoding in zip(found, decodings, strict=True)
    ]


@contextmanager
def running(bundle: Path, **settings: Any) -> Iterator[Engine]:
    engine = engine_of(bundle, **settings)
    try:
        yield engine
    finally:
        engine.stop()


def outcome(job: Job) -> Any:
    """All of it that must not change."""
    result = job.future.result(timeout=600)
    if isinstance(result, Translated):
        return [(each.tokens, each.log_probabilities, each.finish_reason) for each in result.hypotheses]
    return result.vectors.shape, result.vectors.tobytes()


def alone(engine: Engine, asked: Sequence[Request]) -> list[Any]:
    """One after another, each in an engine that does nothing else."""
    found = []
    for request in asked:
        job = request.job()
        engine.submit([job])
        found.append(outcome(job))
    return found


def together(engine: Engine, asked: Sequence[Request], seed: int) -> list[Any]:
    """In some order, a few at a time, at random moments, among others that are cancelled at random moments."""
    choices, order = random.Random(seed), list(range(len(asked)))
    choices.shuffle(order)
    jobs = [request.job() for request in asked]
    doomed: list[Job] = []
    while order:
        coming = [jobs[order.pop()] for _ in range(min(len(order), choices.randint(1, 40)))]
        decoys = [choices.choice(asked).job() for _ in range(choices.choice([0, 0, 1, 3]))]
        doomed += decoys
        coming += decoys
        choices.shuffle(coming)
        engine.submit(coming)
        time.sleep(choices.choice([0, 0.001, 0.01]))
        if doomed and choices.random() < 0.7:
            engine.cancel([doomed.pop(choices.randrange(len(doomed)))])
    engine.cancel(doomed)
    return [outcome(job) for job in jobs]


def same(found: Sequence[Any], expected: Sequence[Any], asked: Sequence[Request]) -> None:
    others = [index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
    assert not others, f"{len(others)} of {len(asked)} differ; the first: {asked[others[0]]}"


@pytest.fixture(scope="module")
def thousand(sentences: list[str], tiny_tokenizer: Tokenizer) -> list[Request]:
    sources = [tiny_tokenizer.source(sentence, "de") for sentence in sentences]
    return requests(sources, 1000, longest_source=128, longest_target=20)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_results_are_bit_identical_in_any_company(
    lively_bundle: Callable[[Precision], Path], thousand: list[Request], precision: Precision, where: str
) -> None:
    """A thousand requests of all kinds, twice: other company, order, moments, rows and threads; and some alone."""
    bundle = lively_bundle(precision)
    with running(bundle, threads=3, rows=64, encode_tokens=1024) as engine:
        crowded = together(engine, thousand, seed=1)
    with running(bundle, threads=1, rows=9, encode_tokens=150) as engine:
        same(together(engine, thousand, seed=2), crowded, thousand)
    some = thousand[::6]
    for threads in (1, 2):
        with running(bundle, threads=threads, rows=7) as engine:
            same(alone(engine, some), crowded[::6], some)


def test_the_thousand_are_worth_the_name(thousand: list[Request]) -> None:
    assert len({tuple(request.source) for request in thousand}) > 900
    lengths = [len(request.source) for request in thousand]
    assert min(lengths) <= 3
    assert sum(length > 64 for length in lengths) > 40
    assert sum(length > 100 for length in lengths) > 5
    decodings = [request.decoding for request in thousand if request.decoding]
    assert 50 < len(thousand) - len(decodings) < 200
    kinds = {
        "beam": [each for each in decodings if each.beam_size > 1],
        "sample": [each for each in decodings if each.sampling],
        "greedy": [each for each in decodings if each.beam_size == 1 and not each.sampling],
    }
    for each in kinds.values():
        assert len(each) > 200
        assert sum(bool(decoding.prefix) for decoding in each) > 50
        assert sum(bool(decoding.no_repeat_ngram) for decoding in each) > 50
        assert sum(bool(decoding.min_tokens) for decoding in each) > 50


@pytest.mark.parametrize("name", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)])
def test_a_shipped_models_results_are_bit_identical_in_any_company(sentences: list[str], name: str) -> None:
    tokenizer = Tokenizer.load(locate(name) / "tokenizer.model")
    languages = itertools.cycle(["de", "en"])
    sources = [tokenizer.source(sentence, language) for sentence, language in zip(sentences, languages, strict=False)]
    asked = requests(sources, 300, longest_source=256, longest_target=12)
    asked = random.Random(4).sample(asked, 200)
    with running(locate(name), threads=2, rows=32, encode_tokens=1024) as engine:
        crowded = together(engine, asked, seed=1)
    with running(locate(name), threads=1, rows=9, encode_tokens=300) as engine:
        same(together(engine, asked, seed=2), crowded, asked)
        same(alone(engine, asked[::4]), crowded[::4], asked[::4])
