"""What goes wrong with one request ends that request, at whichever stage, and nobody else notices."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.exporter import Precision
from model.tokenizer import START, Tokenizer
from serving.engine.decoding import Decoding, Sampling
from serving.engine.engine import Engine
from serving.engine.jobs import Job, TranslationJob, encoding, inspection, translation
from serving.engine.results import Translated
from serving.errors import BUG, NotReady, ServiceError
from serving.runtime.batch import SHARED_K
from tests.serving.conftest import wait_until
from tests.serving.engine.engines import Held, engine_of, greedy, run, soon


@pytest.fixture(scope="module")
def bundle(lively_bundle: Callable[[Precision], Path], where: str) -> Path:
    return lively_bundle("fp32")


@pytest.fixture
def engine(bundle: Path) -> Iterator[Engine]:
    built = engine_of(bundle)
    yield built
    built.stop()


@pytest.fixture(scope="module")
def sources(sentences: list[str], tiny_tokenizer: Tokenizer) -> list[list[int]]:
    ids = [tiny_tokenizer.source(sentence, "de") for sentence in sentences]
    return [each for each in ids if len(each) <= 40][:40]


class Planted(RuntimeError):
    """The fault of these tests."""


def fault(*_: Any, **__: Any) -> Any:
    raise Planted


def spoil(job: TranslationJob, part: str) -> TranslationJob:
    """Let ``part`` of the job's search fail: a method, or a property whenever it is asked."""
    kind = type(job.search)
    spoilt = fault if part == "advance" else property(fault)
    job.search.__class__ = type(kind.__name__, (kind,), {part: spoilt})  # type: ignore[assignment]
    return job


def after(job: TranslationJob, part: str, calls: int) -> TranslationJob:
    """Let a method of the job's search fail at one of its later calls."""
    method, counted = getattr(job.search, part), iter(range(calls))

    def call(*arguments: Any) -> Any:
        return fault() if next(counted, None) is None else method(*arguments)

    setattr(job.search, part, call)
    return job


class Deaf:
    """A listener that is never told anything."""

    loop = asyncio.new_event_loop()

    def on_token(self, token: int) -> None:
        pytest.fail("it was told")

    def on_error(self, error: Exception) -> None:
        pytest.fail("it was told")


def poisoned(stage: str, engine: Engine, source: list[int], patch: pytest.MonkeyPatch) -> Job:
    """A job that fails in ``stage``; the engine is told by its source."""
    runtime, memory = engine._runtime, engine._batch._cache
    beam, sampled = Decoding(9, min_tokens=9, beam_size=3), Decoding(9, min_tokens=9, sampling=Sampling())
    if stage == "encode":
        encode = runtime._encode
        patch.setattr(runtime, "_encode", lambda session, batch: fault() if source in batch else encode(session, batch))
        return encoding(source, soon())
    if stage == "pool":
        pool, length = runtime.pool, len(source)
        patch.setattr(runtime, "pool", lambda *where: fault() if where[2] == length else pool(*where))
        return encoding(source, soon(), pooled=True)
    if stage == "store":
        store, length = memory.store, len(source)
        patch.setattr(memory, "store", lambda *where: fault() if where[3] == length else store(*where))
        return translation(source, beam, soon())
    if stage == "attention":
        attention = runtime.attention
        patch.setattr(runtime, "attention", lambda ids, target: fault() if ids == source else attention(ids, target))
        return inspection(source, [START], soon())
    if stage == "hypotheses of a plain search":
        return spoil(translation(source, Decoding(4), soon()), "hypotheses")
    if stage == "finish of a plain search":
        bad = translation(source, Decoding(4), soon())
        bad.search.finish = fault  # type: ignore[attr-defined]
        return bad
    if stage == "last":
        bad = spoil(translation(source, sampled, soon()), "last")
        bad.listener = Deaf()
        return bad
    if stage == "beam's fourth step":
        return after(translation(source, beam, soon()), "advance", 3)
    if stage == "sample's fourth step":
        return after(translation(source, sampled, soon()), "advance", 3)
    return spoil(translation(source, sampled, soon()), stage)


STAGES = [
    *("encode", "pool", "store", "attention"),
    *("wanted", "given", "advance", "beam's fourth step", "sample's fourth step"),
    *("hypotheses", "hypotheses of a plain search", "finish of a plain search", "last"),
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_one_job_is_no_matter_to_the_others(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    # As long as no other, so that nothing is encoded with it.
    source = [sources[0][0], *[each for ids in sources for each in ids[1:-1]][:88], sources[0][-1]]

    def others() -> list[Job]:
        decodings = [Decoding(12), Decoding(12, beam_size=3), Decoding(12, sampling=Sampling(seed=1))]
        return [translation(ids, decodings[index % 3], soon()) for index, ids in enumerate(sources[:9])]

    def outcome(found: list[Translated]) -> list[Any]:
        return [[(each.tokens, each.log_probabilities) for each in one.hypotheses] for one in found]

    alone = outcome(run(engine, others()))
    held, jobs = Held(engine), others()
    engine.submit(jobs[:4])
    held.next()
    bad = poisoned(stage, engine, source, monkeypatch)
    engine.submit([bad])
    held.release()
    found = [job.future.result(timeout=60) for job in jobs[:4]] + run(engine, jobs[4:])
    error = bad.future.exception(timeout=60)
    assert isinstance(error, ServiceError)
    assert (type(error), error.detail) == (ServiceError, BUG)
    assert outcome(found) == alone
    engine.check_health()
    wait_until(lambda: engine.rows_in_use == 0)
    assert engine.load == engine.waiting_tokens == 0
    assert outcome(run(engine, others())) == alone, "what is left of it harms those who come after it"


def test_who_is_encoded_together_fails_together_and_nobody_else(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = engine._runtime._encode
    # A GPU would have all of them encoded together.
    monkeypatch.setattr(
        engine._runtime, "encoder_cost", engine._runtime.encoder_cost._replace(batch_tokens=256, run_tokens=8)
    )
    long = [[4, *[9] * length, 3] for length in (100, 99)]
    monkeypatch.setattr(
        engine._runtime, "_encode", lambda session, batch: fault() if long[0] in batch else encode(session, batch)
    )
    jobs = [encoding(source, soon()) for source in [*long, *sources[:5]]]
    engine.submit(jobs)
    ends = [job.future.exception(timeout=60) for job in jobs]
    assert [end is None for end in ends] == [False, False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("job", "fault"),
    [
        (lambda: inspection([9] * 20, [START] * 129, soon()), "its target has 129 tokens; the model takes 128"),
        (lambda: inspection([9] * 129, [START], soon()), "its source has 129 tokens"),
        (lambda: encoding([9] * 129, soon()), "its source has 129 tokens"),
        (lambda: encoding([], soon()), "its source has no tokens"),
        (lambda: encoding([9, 800], soon()), "tokens that are none of the model's 800"),
        (lambda: encoding([9, -1], soon()), "tokens that are none of the model's 800"),
        (lambda: inspection([9], [800], soon()), "its target has tokens that are none"),
        (lambda: translation([9] * 129, Decoding(5), soon()), "its source has 129 tokens"),
        (lambda: translation([9], Decoding(129), soon()), "it may write 129 tokens; the model writes 1 to 128"),
        (lambda: translation([9], Decoding(0), soon()), "it may write 0 tokens"),
        (lambda: translation([9], Decoding(128, prefix=(9,) * 128), soon()), "its prefix has 128 tokens"),
        (lambda: translation([9], Decoding(9, prefix=(9, 800)), soon()), "its prefix has tokens that are none"),
    ],
)
def test_what_the_model_cannot_work_on_is_refused_before_it_is_queued(
    engine: Engine, job: Callable[[], Job], fault: str
) -> None:
    good = encoding([9], soon())
    with pytest.raises(ValueError, match=fault):
        engine.submit([good, job()])
    assert engine.load == 0
    assert not good.future.done()
    run(engine, [good])


def test_an_engine_that_breaks_says_so_after_everybody_has_been_told(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, ended = greedy(sources[:5]), threading.Event()
    seen: list[bool] = []
    failures: list[BaseException] = []

    def broken(failure: BaseException) -> None:
        failures.append(failure)
        seen.extend(job.future.done() for job in jobs)
        ended.set()

    engine.when_broken = broken
    monkeypatch.setattr(engine._batch, "step", fault)
    engine.submit(jobs)
    assert ended.wait(10)
    assert seen == [True] * 5
    assert [type(failure) for failure in failures] == [Planted]
    assert all(isinstance(job.future.exception(), NotReady) for job in jobs)
    assert (engine.waiting_tokens, engine.load) == (0, 0)


def test_an_engine_that_is_stopped_is_not_broken(bundle: Path) -> None:
    engine = engine_of(bundle)
    engine.when_broken = lambda failure: pytest.fail("it was only stopped")
    engine.stop()


def test_what_waits_is_counted_once_while_it_moves_from_queue_to_queue(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the very moment, from another thread."""
    found: list[tuple[int, float]] = []
    add = engine._scheduler.add
    jobs = greedy(sources[:3])
    cost, load = sum(job.cost for job in jobs), 3 / engine.rows

    def between(arrived: Any) -> None:
        add(arrived)
        asking = threading.Thread(target=lambda: found.append((engine.waiting_tokens, engine.load)))
        asking.start()
        asking.join(0.2)

    monkeypatch.setattr(engine._scheduler, "add", between)
    engine.submit(jobs)
    for job in jobs:
        job.future.result(timeout=60)
    wait_until(lambda: len(found) == 1)
    [(waiting, loaded)] = found
    assert waiting <= cost
    assert loaded <= load


# What one request costs the others.


def test_who_wants_many_tokens_has_them_found_for_its_own_rows_alone(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: the tokens that a step finds, for all rows and for those that ask for many."""
    decoder = engine._batch._decoder
    step, asked = decoder.step, []

    def counted(rows: int, k: int, whole: bool) -> Any:
        arrays = step(rows, k, whole)
        asked.append((rows, k, whole))
        return arrays

    monkeypatch.setattr(decoder, "step", counted)
    wide = Decoding(12, min_tokens=12, no_repeat_ngram=1, sampling=Sampling(top_k=256))
    neighbours = [translation(source, Decoding(12, min_tokens=12), soon()) for source in sources[:8]]
    run(engine, [*neighbours, translation(sources[9], wide, soon())])
    assert max(rows for rows, _, _ in asked) == 9
    # On a device all tokens are too many to hand over: there the widest ask counts for all.
    of_all = decoder.gives_log_softmax
    assert all(whole == of_all and (k <= SHARED_K) == of_all for _, k, whole in asked)
    asked.clear()
    run(engine, [translation(source, Decoding(12, beam_size=2), soon()) for source in sources[:4]])
    assert {(k, whole) for _, k, whole in asked} == {(4, False)}


def test_rules_and_wide_draws_find_the_same_from_all_tokens_as_from_the_best(
    bundle: Path, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decodings = [
        Decoding(20, min_tokens=20, no_repeat_ngram=1, sampling=Sampling(top_k=256, seed=3)),
        Decoding(20, min_tokens=20, no_repeat_ngram=1, beam_size=4, alternatives=4),
        Decoding(20, min_tokens=20, no_repeat_ngram=1),
    ]
    found = []
    for shared in (SHARED_K, 2, 10**6):
        monkeypatch.setattr("serving.runtime.batch.SHARED_K", shared)
        engine = engine_of(bundle)
        results = run(engine, [translation(source, each, soon()) for source in sources[:4] for each in decodings])
        found.append([[(one.tokens, one.log_probabilities) for one in each.hypotheses] for each in results])
        engine.stop()
    assert found[0] == found[1] == found[2]


def test_time_passes_for_those_who_wait_while_others_fail(
    engine: Engine, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that always fails leaves nobody waiting, and the engine alive."""
    monkeypatch.setattr(engine._runtime, "_encode", fault)
    begin = time.monotonic()
    jobs = greedy(sources[:20])
    engine.submit(jobs)
    assert all(isinstance(job.future.exception(timeout=60), ServiceError) for job in jobs)
    assert time.monotonic() - begin < 30
    monkeypatch.undo()
    run(engine, greedy(sources[:3]))
