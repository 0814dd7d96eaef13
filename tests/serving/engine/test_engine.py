import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.exporter import Precision
from model import checkpoint
from model import search as oracle
from model.tokenizer import END, START, Tokenizer
from model.transformer import Transformer
from serving.engine.decoding import Decoding, Sampling
from serving.engine.engine import Engine
from serving.engine.jobs import Job, encoding, inspection, translation
from serving.engine.results import Translated
from serving.engine.scheduler import GATHER_STEPS
from serving.engine.search import Hypothesis
from serving.errors import DeadlineExceeded, NotReady, QueueFull
from tests.processes import within
from tests.serving.conftest import wait_until
from tests.serving.engine.engines import Held, engine_of, greedy, mixed, run, soon
from tests.serving.engine.reference import expected


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom a step finds must depend on the steps before it alone."""
    monkeypatch.setattr("serving.engine.scheduler.GATHER_SECONDS", math.inf)


@pytest.fixture(scope="module")
def bundle(lively_bundle: Callable[[Precision], Path], where: str) -> Path:
    return lively_bundle("fp32")


@pytest.fixture(scope="module")
def model(lively_checkpoint: Path) -> Transformer:
    return checkpoint.load(lively_checkpoint).model


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    built = engine_of(bundle)
    yield built
    built.stop()


@pytest.fixture
def make(bundle: Path) -> Iterator[Callable[..., Engine]]:
    """Gives engines of one's own, which are stopped in the end."""
    built: list[Engine] = []

    def make(**settings: Any) -> Engine:
        built.append(engine_of(bundle, **settings))
        return built[-1]

    yield make
    for engine in built:
        engine.stop()


@pytest.fixture(scope="module")
def sources(sentences: list[str], tiny_tokenizer: Tokenizer) -> list[list[int]]:
    ids = [tiny_tokenizer.source(sentence, "de") for sentence in sentences]
    return [each for each in ids if len(each) <= 60][:80]


@pytest.fixture(scope="module")
def long_sources(sources: list[list[int]], model: Transformer) -> list[list[int]]:
    """Three as long as the model allows."""
    words = [token for source in sources for token in source[1:-1]]
    longest = model.config.max_positions
    return [[sources[0][0], *words[begin : begin + longest - 2], END] for begin in (0, 100, 200)]


def same(found: Sequence[Hypothesis], expected: Sequence[oracle.Hypothesis]) -> None:
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert [each.finish_reason == "stop" for each in found] == [each.finished for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)


# Against the reference.


def test_greedy_search_equals_pytorch(engine: Engine, sources: list[list[int]], model: Transformer) -> None:
    found: list[Translated] = run(engine, greedy(sources[:40], 24))
    for source, each in zip(sources, found, strict=False):
        same(each.hypotheses, expected(model, torch.tensor(source), Decoding(24)))
    lengths = [len(each.hypotheses[0].tokens) for each in found]
    assert min(lengths) < 10  # some end, others do not
    assert lengths.count(24) > 10


@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_equals_pytorch(
    engine: Engine, sources: list[list[int]], model: Transformer, size: int, penalty: float
) -> None:
    """With two beams in the room of sixteen rows, or several small ones."""
    decoding = Decoding(16, beam_size=size, alternatives=size, length_penalty=penalty)
    few = sources[: 3 * size : size]
    found = run(engine, [translation(source, decoding, soon()) for source in few])
    for source, each in zip(few, found, strict=True):
        same(each.hypotheses, expected(model, torch.tensor(source), decoding))


def test_every_kind_of_search_side_by_side_equals_pytorch(
    make: Callable[..., Engine], sources: list[list[int]], model: Transformer
) -> None:
    """Beams that grow and shrink beside samples and prefixes; no more rows than two of the widest beams take."""
    decodings = mixed(sources, seed=1)
    jobs = [translation(source, each, soon()) for source, each in zip(sources, decodings, strict=True)]
    others = [encoding(source, soon()) for source in sources[:9]]
    crowd = [*jobs, *others, inspection(sources[0], [START, 9], soon())]
    random.Random(2).shuffle(crowd)
    run(make(rows=14, encode_tokens=300), crowd)
    for source, decoding, job in zip(sources, decodings, jobs, strict=True):
        same(job.future.result().hypotheses, expected(model, torch.tensor(source), decoding))
    assert sum(decoding.beam_size > 1 for decoding in decodings) > 12
    assert sum(decoding.sampling is not None for decoding in decodings) > 12
    assert sum(job.greedy for job in jobs) > 12


def test_source_and_target_may_be_as_long_as_the_model_allows(
    make: Callable[..., Engine], sources: list[list[int]], long_sources: list[list[int]], model: Transformer
) -> None:
    longest = model.config.max_positions
    decodings = [
        Decoding(longest, min_tokens=longest),
        Decoding(longest, min_tokens=longest, beam_size=3, alternatives=3),
        Decoding(longest, min_tokens=longest, prefix=tuple(sources[0][1:-1]), sampling=Sampling(seed=1)),
    ]
    jobs = [translation(source, each, soon()) for source, each in zip(long_sources, decodings, strict=True)]
    short = greedy(sources[:40], 6)
    run(make(rows=8), [*short[:20], *jobs, *short[20:]])
    for source, decoding, job in zip(long_sources, decodings, jobs, strict=True):
        found = job.future.result().hypotheses
        same(found, expected(model, torch.tensor(source), decoding))
        assert {len(each.tokens) for each in found} == {longest}


def test_plain_searches_may_be_as_long_as_the_model_allows(
    make: Callable[..., Engine], sources: list[list[int]], model: Transformer
) -> None:
    longest = model.config.max_positions
    jobs = greedy(sources[:40], longest)
    assert all(job.greedy for job in jobs)
    found = [each.hypotheses for each in run(make(rows=8), jobs)]
    whole = [index for index, [each] in enumerate(found) if len(each.tokens) == longest]
    assert 3 < len(whole) < 40
    for index in whole[:3]:
        same(found[index], expected(model, torch.tensor(sources[index]), Decoding(longest)))


def test_a_plain_search_and_one_that_is_heard_find_the_same(engine: Engine, sources: list[list[int]]) -> None:
    class Ear:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop, self.heard = loop, list[int]()

        def on_token(self, token: int) -> None:
            self.heard.append(token)

        def on_error(self, error: Exception) -> None:
            raise error

    async def both() -> None:
        plain, ears = greedy(sources[:20], 24), [Ear(asyncio.get_running_loop()) for _ in range(20)]
        heard = [translation(each.source, Decoding(24), soon(), ear) for each, ear in zip(plain, ears, strict=True)]
        assert not any(job.greedy for job in heard)
        engine.submit([job for pair in zip(plain, heard, strict=True) for job in pair])
        for one, other, ear in zip(plain, heard, ears, strict=True):
            expected = await asyncio.wrap_future(one.future)
            assert (await asyncio.wrap_future(other.future)).hypotheses == expected.hypotheses
            assert ear.heard == expected.hypotheses[0].tokens

    asyncio.run(both())


def test_a_beam_that_grows_while_others_leave_keeps_its_past(
    make: Callable[..., Engine], sources: list[list[int]], model: Transformer
) -> None:
    """All rows are spoken for: those of the ones that leave are filled from the end, where the beam has just grown."""
    decodings = [Decoding(limit) for limit in (1, 2, 2, 3)]
    decodings[1:1] = [Decoding(12, min_tokens=12, beam_size=7, alternatives=7), Decoding(5, beam_size=2)]
    for order in range(6):
        turned = [*decodings[order:], *decodings[:order]]
        engine = make(rows=13)
        held = Held(engine)
        jobs = [translation(source, each, soon()) for source, each in zip(sources, turned, strict=False)]
        engine.submit(jobs)
        assert held.next() == 6
        held.let_go()
        assert held.next() == 5 + 6 + 1
        held.release()
        for source, decoding, job in zip(sources, turned, jobs, strict=False):
            found = job.future.result(timeout=60).hypotheses
            same(found, expected(model, torch.tensor(source), decoding))


def test_inspected_weights_are_those_pytorch_computes(
    engine: Engine, sources: list[list[int]], model: Transformer
) -> None:
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


def test_vectors_are_those_pytorch_computes(engine: Engine, sources: list[list[int]], model: Transformer) -> None:
    found = run(engine, [encoding(source, soon()) for source in sources])
    for source, each in zip(sources, found, strict=True):
        with torch.inference_mode():
            memory = model.encode(torch.tensor([source]), torch.tensor([len(source)])).memory[0]
        np.testing.assert_allclose(each.vectors, memory, atol=1e-4)


def test_pooled_vectors_are_those_pytorch_computes(
    engine: Engine, sources: list[list[int]], model: Transformer, lively_checkpoint: Path
) -> None:
    pooling = checkpoint.load(lively_checkpoint).pooling
    assert pooling
    found = run(engine, [encoding(source, soon(), pooled=True) for source in sources])
    for source, each in zip(sources, found, strict=True):
        lengths = torch.tensor([len(source)])
        with torch.inference_mode():
            expected = pooling(model.encode(torch.tensor([source]), lengths).memory, lengths).vectors
        np.testing.assert_allclose(each.vectors, expected, atol=1e-4)


def test_a_limit_ends_a_translation_and_says_so(engine: Engine, sources: list[list[int]]) -> None:
    [found] = run(engine, greedy(sources[:1], 1))
    assert len(found.hypotheses[0].tokens) == 1
    assert found.hypotheses[0].finish_reason == "length"


# The encoder's batches.


def test_who_comes_while_others_decode_is_encoded_with_those_who_come_soon_after(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=8)
    held = Held(engine)
    batches: list[int] = []
    encode = engine._runtime.encode

    def watched(chunks: Sequence[list[list[int]]]) -> Any:
        batches.append(sum(map(len, chunks)))
        return encode(chunks)

    engine._runtime.encode = watched  # type: ignore[method-assign]
    decoding = Decoding(30, min_tokens=30)
    jobs = [translation(source, decoding, soon()) for source in sources[:5]]
    engine.submit(jobs[:1])
    assert held.next() == 1  # at once: nobody else is there
    for job in jobs[1:4]:
        engine.submit([job])
        held.let_go()
        assert held.next() == 1
    held.let_go(GATHER_STEPS - 3)
    assert held.next() == 4
    held.let_go(GATHER_STEPS)
    held.next()
    engine.submit(jobs[4:])
    held.let_go()
    assert held.next() == 5  # at once: nobody has come for long
    assert batches == [1, 3, 1]
    held.finish(jobs)


def test_after_a_while_nobody_waits_for_more_to_come(
    make: Callable[..., Engine], sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engine.scheduler.GATHER_SECONDS", 0.3)
    engine = make(rows=8)
    held = Held(engine)
    one, other = (translation(source, Decoding(9, min_tokens=9), soon()) for source in sources[:2])
    engine.submit([one])
    held.let_go()
    held.next()
    engine.submit([other])
    time.sleep(0.3)
    held.let_go()
    assert held.next() == 2
    held.finish([one, other])


def test_what_needs_no_row_waits_no_longer_and_who_leaves_meanwhile_is_not_encoded(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=8)
    held = Held(engine)
    first = translation(sources[0], Decoding(30, min_tokens=30), soon())
    engine.submit([first])
    held.let_go()
    held.next()
    vectors, attended = encoding(sources[1], soon()), inspection(sources[2], [START, 9], soon())
    left, late = encoding(sources[3], soon()), encoding(sources[4], time.monotonic() + 0.05)
    for job in (vectors, attended, left, late):
        engine.submit([job])
    time.sleep(0.06)
    engine.cancel([left])
    encoded = engine.work.source_tokens
    held.let_go()
    held.next()
    assert left.future.cancelled()
    with pytest.raises(DeadlineExceeded):
        late.future.result(timeout=0)
    assert not vectors.future.done()
    held.let_go(GATHER_STEPS - 2)
    held.next()
    assert vectors.future.done()
    assert attended.future.done()
    assert engine.work.source_tokens == encoded + len(sources[1])
    held.finish([first])


def test_who_leaves_in_the_moment_of_arriving_is_given_up_within_a_step(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=8)
    held = Held(engine)
    stays, leaves = (translation(source, Decoding(30, min_tokens=30), soon()) for source in sources[:2])
    hand_over, came = engine._intake.hand_over, []

    def handed_over() -> bool:
        """After a turn's arrivals are taken, and before the turn, somebody comes and goes."""
        someone_left = hand_over()
        if stays.encoded and not came:
            came.append(True)
            engine.submit([leaves])
            engine.cancel([leaves])
        return someone_left

    engine._intake.hand_over = handed_over  # type: ignore[method-assign]
    engine.submit([stays])
    held.let_go(2)
    held.next()
    assert came
    held.let_go()
    held.next()
    assert leaves.future.cancelled()
    held.finish([stays])


def test_the_rate_at_which_the_queue_drains_knows_nothing_of_waiting_for_more(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    """While there is room for all, nobody is refused, and nothing can be learnt of how long they would have to wait."""
    engine = make(rows=8)
    held = Held(engine)
    before, jobs = engine._scheduler.throughput.rate, []
    for source in sources[:12]:
        jobs.append(translation(source, Decoding(7, min_tokens=7), soon()))
        engine.submit(jobs[-1:])
        held.let_go()
        time.sleep(0.02)
    held.finish(jobs)
    assert engine._scheduler.throughput.rate == before


def test_a_list_leaves_room_for_those_who_come_after_it(make: Callable[..., Engine], sources: list[list[int]]) -> None:
    engine = make(rows=6, share=2)
    held = Held(engine)
    decoding = Decoding(5, min_tokens=5)
    many = [translation(source, decoding, soon()) for source in sources[:24]]
    engine.submit(many)
    held.let_go()
    assert held.next() == 6  # nobody else is there
    single = translation(sources[0], decoding, soon())
    engine.submit([single])
    held.let_go(4)
    assert held.next() == 3  # the single one, and the list's share
    held.let_go(5)
    held.next()
    assert single.future.done()
    assert sum(job.future.done() for job in many) == 8
    held.finish(many)


def test_the_load_is_what_is_decoded_and_what_waits_wherever_it_waits(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=4)
    held = Held(engine)
    assert (engine.rows_in_use, engine.load) == (0, 0)
    decoding = Decoding(3, min_tokens=3)
    engine.submit([translation(source, decoding, soon()) for source in sources[:7]])
    held.next()
    assert (engine.rows_in_use, engine.load) == (4, 7 / 4)
    # The engine takes no turn now: these have come, and are not in its queue yet.
    late = [translation(sources[8], Decoding(2, beam_size=3), soon()), encoding(sources[9], soon())]
    engine.submit(late)
    assert (engine.rows_in_use, engine.load) == (4, 11 / 4)
    held.let_go()
    held.next()
    assert engine.load == 11 / 4
    engine.cancel(late)
    held.let_go()
    held.next()
    assert engine.load == 7 / 4
    held.release()
    run(engine, greedy(sources[:1], 1))
    deadline = time.monotonic() + 10
    while engine.load and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (engine.rows_in_use, engine.load) == (0, 0)


def test_what_is_only_encoded_is_load_too_while_it_waits_and_while_it_is_encoded(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=4)
    encode, begun, go = engine._runtime.encode, threading.Event(), threading.Event()

    def held(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return encode(*arguments)

    engine._runtime.encode = held  # type: ignore[method-assign]
    jobs = [encoding(source, soon()) for source in sources[:5]]
    engine.submit(jobs[:2])
    assert begun.wait(60)
    engine.submit(jobs[2:])
    assert (engine.rows_in_use, engine.load) == (0, 5 / 4)
    go.set()
    for job in jobs:
        job.future.result(timeout=60)
    wait_until(lambda: engine.load == 0)


# Whoever is not wanted any more.


def test_a_cancelled_job_frees_its_rows_within_one_step(
    make: Callable[..., Engine], sources: list[list[int]], model: Transformer
) -> None:
    engine = make(rows=20)
    held = Held(engine)
    decodings = [Decoding(20, min_tokens=20, beam_size=size) for size in (4, 1, 7, 1, 3, 1)]
    jobs = [translation(source, each, soon()) for source, each in zip(sources, decodings, strict=False)]
    engine.submit(jobs)
    held.let_go(3)
    assert held.next() == 17
    # In the middle of a step, the first and one in the midst, a beam and a single one.
    engine.cancel([jobs[0], jobs[3]])
    held.let_go()
    assert held.next() == 12
    assert jobs[0].future.cancelled()
    assert jobs[3].future.cancelled()
    assert jobs[0].slots == jobs[3].slots == []
    # Who comes now is encoded at once, and runs in the rows that were theirs.
    late = translation(sources[7], Decoding(3, beam_size=5), soon())
    engine.submit([late])
    held.let_go()
    assert held.next() == 13
    held.let_go()
    assert held.next() == 17
    engine.cancel(jobs)
    held.let_go()
    held.next()
    assert [job.slots for job in jobs] == [[]] * 6
    held.release()
    same(late.future.result(timeout=60).hypotheses, expected(model, torch.tensor(sources[7]), late.search.decoding))
    assert all(job.future.cancelled() for job in jobs)


def test_those_who_stay_do_not_notice_who_leaves(
    make: Callable[..., Engine], sources: list[list[int]], model: Transformer
) -> None:
    decodings = mixed(sources[:24], seed=5, longest=16)
    for seed in range(3):
        engine, choices = make(rows=11), random.Random(seed)
        held = Held(engine)
        jobs = [translation(source, each, soon()) for source, each in zip(sources, decodings, strict=False)]
        engine.submit(jobs)
        leaving = choices.sample(jobs, 10)
        for job in leaving:
            held.let_go(choices.randint(1, 3))
            engine.cancel([job])
        held.release()
        for source, decoding, job in zip(sources, decodings, jobs, strict=False):
            if job not in leaving:
                found = job.future.result(timeout=60).hypotheses
                same(found, expected(model, torch.tensor(source), decoding))
            else:
                # Who was done before keeps the result.
                assert job.future.cancelled() or job.future.result(timeout=60).hypotheses


def test_cancelling_what_waits_or_is_done_or_unknown_is_no_matter(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=1)
    held = Held(engine)
    first, second, third = jobs = greedy(sources[:3], 2)
    engine.submit(jobs)
    held.next()
    engine.cancel([second])
    held.release()
    assert third.future.result(timeout=60)
    assert second.future.cancelled()
    engine.cancel([first, third, *greedy(sources[:1])])
    assert first.future.result().hypotheses


def test_a_future_that_its_owner_cancelled_is_left_alone(make: Callable[..., Engine], sources: list[list[int]]) -> None:
    """As asyncio does when a client hangs up: at any moment, and before the engine is told."""
    engine = make(rows=4)
    held = Held(engine)
    jobs = [*greedy(sources[:2], 2), encoding(sources[2], soon()), translation(sources[3], Decoding(2), soon())]
    engine.submit(jobs[:2])
    held.next()
    for job in jobs:
        assert job.future.cancel()
    engine.submit(jobs[2:])
    engine.cancel(jobs[3:])
    held.release()
    assert run(engine, greedy(sources[4:5]))
    engine.check_health()


def test_a_job_past_its_deadline_fails_while_others_go_on(engine: Engine, sources: list[list[int]]) -> None:
    late, good = translation(sources[0], Decoding(60), time.monotonic()), translation(sources[1], Decoding(5), soon())
    engine.submit([late, good])
    assert good.future.result(timeout=60).hypotheses
    with pytest.raises(DeadlineExceeded, match="not done within"):
        late.future.result(timeout=60)


def test_a_deadline_that_passes_during_a_step_ends_the_job_after_it(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make()
    held = Held(engine)
    good = translation(sources[0], Decoding(20, min_tokens=20), soon())
    engine.submit([good])
    held.let_go(GATHER_STEPS)
    late = translation(sources[1], Decoding(20, min_tokens=20, beam_size=3), time.monotonic() + 0.5)
    engine.submit([late])
    held.let_go(2)
    assert held.next() == 4
    time.sleep(max(0.0, late.deadline - time.monotonic()))
    assert not late.future.done()
    held.let_go()
    assert held.next() == 1
    with pytest.raises(DeadlineExceeded):
        late.future.result(timeout=0)
    held.release()
    assert len(good.future.result(timeout=60).hypotheses[0].tokens) == 20


def test_a_job_that_ends_in_the_step_in_which_it_is_cancelled_or_late_has_its_result(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make()
    held = Held(engine)
    cancelled = translation(sources[0], Decoding(1), soon())
    late = translation(sources[1], Decoding(1), time.monotonic() + 0.5)
    engine.submit([cancelled, late])
    held.next()
    engine.cancel([cancelled])
    time.sleep(max(0.0, late.deadline - time.monotonic()))
    held.release()
    assert cancelled.future.result(timeout=60).hypotheses
    assert late.future.result(timeout=60).hypotheses


# Listeners.


class Loop:
    """Stands in for an event loop: takes calls and makes them when asked to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def call_soon_threadsafe(self, callback: Callable[..., object], *arguments: Any) -> None:
        self.calls.append((callback, arguments))

    def run(self) -> None:
        for callback, arguments in self.calls:
            callback(*arguments)


@dataclass
class Ear:
    """A listener."""

    loop: Any
    heard: list[int] = field(default_factory=list)

    def on_token(self, token: int) -> None:
        self.heard.append(token)

    def on_error(self, error: Exception) -> None:
        raise error


def test_listeners_hear_exactly_the_final_tokens_with_one_call_a_loop_and_step(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=16)
    held = Held(engine)
    decodings = [each for each in mixed(sources, seed=8, longest=12) if each.beam_size == 1][:6]
    loops = [Loop(), Loop()]
    ears = [Ear(loops[index % 2]) for index in range(len(decodings))]
    jobs = [
        translation(source, decoding, soon(), ear)  # type: ignore[arg-type]
        for source, decoding, ear in zip(sources, decodings, ears, strict=False)
    ]
    deaf = [translation(sources[9], Decoding(16, min_tokens=16, beam_size=4), soon()), *greedy(sources[10:14])]
    engine.submit([*jobs, *deaf])
    held.finish([*jobs, *deaf])
    for loop in loops:
        loop.run()
        # All began in the same step, so the one with the most tokens was spoken to in each.
        assert len(loop.calls) == max(len(ear.heard) for ear in ears if ear.loop is loop) <= len(held.taken)
    for job, ear in zip(jobs, ears, strict=True):
        assert ear.heard == job.future.result().hypotheses[0].tokens


def test_a_listener_has_heard_everything_when_the_result_arrives(engine: Engine, sources: list[list[int]]) -> None:
    async def listen() -> None:
        loop = asyncio.get_running_loop()
        ears = [Ear(loop) for _ in range(20)]
        jobs = [translation(source, Decoding(9), soon(), ear) for source, ear in zip(sources, ears, strict=False)]
        engine.submit(jobs)

        async def one(job: Job, ear: Ear) -> None:
            found = await asyncio.wrap_future(job.future)
            assert ear.heard == found.hypotheses[0].tokens

        await asyncio.gather(*map(one, jobs, ears))

    asyncio.run(listen())


def test_a_listener_that_leaves_hears_no_more_and_one_whose_loop_is_closed_harms_nobody(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make()
    held = Held(engine)
    closed, loop = asyncio.new_event_loop(), Loop()
    closed.close()
    gone, nobody, good = Ear(loop), Ear(closed), Ear(loop)
    jobs = [
        translation(source, Decoding(9, min_tokens=9), soon(), ear)
        for source, ear in zip(sources, (gone, nobody, good), strict=False)
    ]
    engine.submit(jobs)
    held.let_go(3)
    held.next()
    engine.cancel(jobs[:1])
    held.release()
    assert jobs[1].future.result(timeout=60)
    assert jobs[2].future.result(timeout=60)
    loop.run()
    assert good.heard == jobs[2].future.result().hypotheses[0].tokens
    assert nobody.heard == []
    assert len(gone.heard) <= 4


# What is refused, and what breaks.


def test_a_request_past_the_queue_limit_is_refused_whole_and_told_when_to_return(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=1, queue=500)
    held = Held(engine)
    many = greedy(sources, 60)
    engine.submit(many)  # larger than the whole queue: let in because nothing else waits
    held.next()
    late = greedy(sources[:5])
    with pytest.raises(QueueFull) as refused:
        engine.submit(late)
    assert refused.value.retry_after >= 1
    engine.cancel(many)
    held.release()
    deadline = time.monotonic() + 30
    while engine.waiting_tokens and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [len(each.hypotheses[0].tokens) > 0 for each in run(engine, late)] == [True] * 5


def test_a_job_wider_than_the_engine_is_refused_with_all_that_came_with_it(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    """It would wait for ever, and everybody behind it."""
    engine = make(rows=4)
    jobs = [*greedy(sources[:1]), translation(sources[0], Decoding(5, beam_size=5), soon())]
    with pytest.raises(ValueError, match="a job wants 5 rows; there are 4"):
        engine.submit(jobs)
    assert engine.waiting_tokens == 0
    assert not jobs[0].future.done()
    [found] = run(engine, [translation(sources[0], Decoding(5, beam_size=4), soon())])
    assert found.hypotheses


def test_stopping_fails_what_is_not_done_and_refuses_what_comes(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make(rows=4)
    held = Held(engine)
    jobs = [translation(source, Decoding(99, beam_size=3), soon()) for source in sources[:9]]
    engine.submit(jobs)
    held.stop()
    for job in (jobs[0], jobs[-1]):
        with pytest.raises(NotReady):
            job.future.result(timeout=1)
    with pytest.raises(NotReady, match="has stopped"):
        engine.submit(greedy(sources[:1]))
    with pytest.raises(RuntimeError, match="thread has ended"):
        engine.check_health()
    engine.stop()  # a second time is no matter


def test_an_engine_proves_itself_in_its_own_thread_and_what_is_not_proven_does_not_start(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make()
    threads: list[str] = []
    proven = Engine(
        engine._runtime, engine._batch, 512, 10**9, 16, lambda: threads.append(threading.current_thread().name)
    )
    assert threads == [proven._thread.name]
    proven.stop()
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        Engine(engine._runtime, engine._batch, 512, 10**9, 16, broken)
    assert within(5, lambda: threading.active_count() == before) is not None


def broken(*arguments: object, **options: object) -> None:
    raise RuntimeError("out of memory")


def is_broken(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.check_health()
    with pytest.raises(NotReady, match="out of memory"):
        engine.submit(greedy([[9, END]]))


@pytest.mark.parametrize("part", ["encode", "step"])
def test_an_engine_that_breaks_tells_everyone_and_is_unhealthy(
    make: Callable[..., Engine], sources: list[list[int]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    engine = make(rows=4)
    engine.check_health()
    monkeypatch.setattr(engine._runtime if part == "encode" else engine._batch, part, broken)
    jobs = [*greedy(sources[:5]), translation(sources[5], Decoding(5, beam_size=3), soon())]
    jobs += [encoding(sources[6], soon()), inspection(sources[0], [START], soon())]
    engine.submit(jobs)
    # Those done before it broke keep their results; nobody is left waiting.
    ends = [job.future.exception(timeout=60) for job in jobs]
    assert all(end is None or isinstance(end, NotReady) for end in ends)
    assert isinstance(ends[0], NotReady)
    is_broken(engine)


@pytest.mark.parametrize("part", ["copy", "written"])
def test_an_engine_whose_cache_breaks_leaves_nobody_waiting(
    make: Callable[..., Engine], sources: list[list[int]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Nor those that are done, or given up, in the very step: rows move when they leave, and that can fail."""
    engine = make(rows=8)
    if part == "copy" and not engine._batch._decoder.packed:
        part = "settle"  # a device's rows stay where they are, but sources are put there
    held = Held(engine)
    jobs = [translation(source, Decoding(1), soon()) for source in sources[:2]]
    cancelled, late = greedy(sources[2:4])
    late.deadline = time.monotonic() + 0.3
    # The longest has the last row; a single one, so that nothing is copied before the others leave.
    last = translation(max(sources, key=len), Decoding(20, min_tokens=20), soon())
    engine.submit([*jobs, cancelled, late, last])
    held.next()
    engine.cancel([cancelled])
    monkeypatch.setattr(engine._batch._cache, part, broken)
    time.sleep(max(0.0, late.deadline - time.monotonic()))
    engine.submit(more := greedy(sources[5:7]))
    held.release()
    for job in [*jobs, late, last, *more]:
        end = job.future.exception(timeout=10)
        assert end is None or isinstance(end, NotReady | DeadlineExceeded)
    assert cancelled.future.done()
    is_broken(engine)


def test_an_engine_that_is_stuck_is_unhealthy_and_one_without_work_is_not(
    make: Callable[..., Engine], sources: list[list[int]]
) -> None:
    engine = make()
    held = Held(engine)
    time.sleep(0.02)
    engine.check_health(patience=0.01)
    job = greedy(sources[:1], 2)
    engine.submit(job)
    held.next()
    engine.check_health()
    time.sleep(0.02)
    with pytest.raises(RuntimeError, match="took no turn"):
        engine.check_health(patience=0.01)
    held.release()
    assert job[0].future.result(timeout=60)
