import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import read_manifest
from model import checkpoint
from model.search import greedy
from model.tokenizer import END, PADDING, START, Tokenizer
from serving.engine import Engine
from serving.errors import DeadlineExceeded, NotReady, QueueFull
from serving.job import Job, Translated, encoding, inspection, translation
from serving.runtime import Runtime


def engine_of(bundle: Path, threads: int = 1, rows: int = 16, encode_tokens: int = 512, queue: int = 10**9) -> Engine:
    return Engine(Runtime(bundle, read_manifest(bundle), threads), rows, encode_tokens, queue)


def soon() -> float:
    return time.monotonic() + 60


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    built = engine_of(tiny_bundle)
    yield built
    built.stop()


@pytest.fixture(scope="module")
def sources(sentences: list[str], tiny_tokenizer: Tokenizer) -> list[list[int]]:
    ids = [tiny_tokenizer.source(sentence, "de") for sentence in sentences]
    return [each for each in ids if len(each) <= 60][:80]


def run(engine: Engine, jobs: list[Job]) -> list[Any]:
    engine.submit(jobs)
    return [job.future.result(timeout=60) for job in jobs]


def jobs_for(sources: list[list[int]], limit: int = 12) -> list[Job]:
    return [translation(source, limit, soon()) for source in sources]


def test_greedy_tokens_and_scores_equal_pytorch(
    engine: Engine, sources: list[list[int]], tiny_checkpoint: Path
) -> None:
    model = checkpoint.load(tiny_checkpoint).model
    lengths = torch.tensor([len(source) for source in sources])
    padded = torch.full((len(sources), int(lengths.max())), PADDING)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = torch.tensor(source)
    expected = greedy(model, padded, lengths, [12] * len(sources))
    found: list[Translated] = run(engine, jobs_for(sources))
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.finish_reason == "stop" for each in found] == [each.finished for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_bit_identical_in_any_company(
    engine: Engine, sources: list[list[int]], tiny_bundle: Path, threads: int
) -> None:
    alone = [run(engine, [job])[0] for job in jobs_for(sources[:40], limit=20)]
    other = engine_of(tiny_bundle, threads, rows=7, encode_tokens=150)
    order = list(range(40)) * 2
    random.Random(3).shuffle(order)
    jobs = [translation(sources[index], 20, soon()) for index in order]
    for begin in range(0, len(jobs), 9):
        other.submit(jobs[begin : begin + 9])
        time.sleep(0.002)
    for index, job in zip(order, jobs, strict=True):
        found = job.future.result(timeout=60)
        assert found.tokens == alone[index].tokens
        assert found.log_probabilities == alone[index].log_probabilities
    other.stop()


def test_a_vector_is_bit_identical_in_any_company(engine: Engine, sources: list[list[int]]) -> None:
    alone = [run(engine, [encoding(source, soon())])[0].memory for source in sources[:20]]
    together = run(engine, [encoding(source, soon()) for source in sources[:20]])
    for one, other, source in zip(alone, together, sources, strict=False):
        assert one.shape == (len(source), 32)
        np.testing.assert_array_equal(one, other.memory)


def test_inspected_weights_are_those_pytorch_computes(
    engine: Engine, sources: list[list[int]], tiny_checkpoint: Path
) -> None:
    model = checkpoint.load(tiny_checkpoint).model
    source, target = sources[0], [START, *sources[1][1:-1]]
    [seen] = run(engine, [inspection(source, target, soon())])
    with torch.inference_mode():
        encoded = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        decoded = model.decode(torch.tensor([target]), encoded)
    for name, attended in {
        "encoder.1.self": encoded.attention[1],
        "decoder.0.self": decoded.self_attention[0],
        "decoder.1.cross": decoded.cross_attention[1],
    }.items():
        np.testing.assert_allclose(seen.arrays[f"{name}.weights"], attended.weights[0], atol=1e-5)
        np.testing.assert_allclose(seen.arrays[f"{name}.scores"], attended.scores[0], atol=1e-4)


def test_a_limit_ends_a_translation_and_says_so(engine: Engine, sources: list[list[int]]) -> None:
    [found] = run(engine, jobs_for(sources[:1], limit=1))
    assert len(found.tokens) == 1
    assert found.finish_reason == "length"


def test_a_request_past_the_queue_limit_is_refused_whole_and_told_when_to_return(
    tiny_bundle: Path, sources: list[list[int]]
) -> None:
    engine = engine_of(tiny_bundle, rows=1, queue=500)
    many = jobs_for(sources, limit=60)
    engine.submit(many)  # larger than the whole queue: let in because nothing else waits
    late = jobs_for(sources[:5])
    with pytest.raises(QueueFull) as refused:
        engine.submit(late)
    assert refused.value.retry_after >= 1
    assert refused.value.headers["Retry-After"] == str(refused.value.retry_after)
    engine.cancel(many)
    deadline = time.monotonic() + 30
    while engine.waiting_tokens and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [len(each.tokens) > 0 for each in run(engine, late)] == [True] * 5
    engine.stop()


def test_a_job_past_its_deadline_fails_while_others_go_on(engine: Engine, sources: list[list[int]]) -> None:
    late, good = translation(sources[0], 60, time.monotonic()), translation(sources[1], 5, soon())
    engine.submit([late, good])
    assert good.future.result(timeout=60).tokens
    with pytest.raises(DeadlineExceeded, match="not done within"):
        late.future.result(timeout=60)


def test_a_cancelled_job_leaves_and_its_rows_are_used_again(tiny_bundle: Path, sources: list[list[int]]) -> None:
    engine = engine_of(tiny_bundle, rows=2)
    long = [translation(source, 128, soon()) for source in sources[:2]]
    engine.submit(long)
    engine.cancel(long)
    found = run(engine, jobs_for(sources[2:8], limit=5))
    assert len(found) == 6
    assert all(job.future.cancelled() for job in long)
    engine.stop()


def test_stopping_fails_what_is_not_done_and_refuses_what_comes(tiny_bundle: Path, sources: list[list[int]]) -> None:
    engine = engine_of(tiny_bundle, rows=1)
    jobs = jobs_for(sources, limit=128)
    engine.submit(jobs)
    engine.stop()
    with pytest.raises(NotReady):
        jobs[-1].future.result(timeout=1)
    with pytest.raises(NotReady):
        engine.submit(jobs_for(sources[:1]))
    with pytest.raises(RuntimeError, match="thread has ended"):
        engine.check_health()


@pytest.mark.parametrize("part", ["encode", "step", "attention"])
def test_an_engine_that_breaks_tells_everyone_and_is_unhealthy(
    tiny_bundle: Path, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    engine = engine_of(tiny_bundle, rows=2)
    engine.check_health()
    monkeypatch.setattr(engine._runtime, part, broken)
    jobs = [*jobs_for(sources[:5]), inspection(sources[0], [START], soon())]
    engine.submit(jobs)
    # Those done before it broke keep their results; nobody is left waiting.
    ends = [job.future.exception(timeout=60) for job in jobs]
    assert all(end is None or isinstance(end, NotReady) for end in ends)
    assert isinstance(ends[-1], NotReady)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.check_health()
    with pytest.raises(NotReady, match="out of memory"):
        engine.submit(jobs_for(sources[:1]))


def test_source_and_target_may_be_as_long_as_the_model_allows(
    engine: Engine, sources: list[list[int]], tiny_checkpoint: Path
) -> None:
    model = checkpoint.load(tiny_checkpoint).model
    joined = [token for source in sources for token in source[1:-1]]
    longest = model.config.max_positions
    long = [[sources[0][0], *joined[begin : begin + longest - 2], END] for begin in (0, 100, 200)]
    expected = greedy(model, torch.tensor(long), torch.tensor([longest] * 3), [longest] * 3)
    found = run(engine, jobs_for([*sources[:5], *long], limit=longest))[5:]
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert max(len(each.tokens) for each in found) == longest
