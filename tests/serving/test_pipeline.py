import asyncio
import gc
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import verify
from export.exporter import export
from model import checkpoint
from model.search import beam, sample
from model.translate import translate
from serving.engine.jobs import Job, translation
from serving.errors import DeadlineExceeded, Invalid, NotReady, QueueFull, ServiceError, TooLarge
from serving.options import SamplingOptions, TranslateOptions
from serving.pipeline import Pipeline
from serving.settings import Settings
from serving.streaming import Delta
from serving.translation import Translation
from tests.serving.conftest import wait_until
from tests.serving.engine.engines import Held, greedy


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    built = Pipeline(Settings(bundle=tiny_bundle, cpus=1))
    yield built
    built.close()


def test_texts_come_back_as_the_reference_translates_them(
    pipeline: Pipeline, tiny_checkpoint: Path, sentences: list[str]
) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    texts = [text for text in sentences if len(text) < 90][:25]
    expected = dict(translate(loaded.model, loaded.tokenizer, texts, "de"))
    found, stages = asyncio.run(pipeline.translate(texts, "en", "de"))
    assert [each.text for each in found] == [expected[index] for index in range(len(texts))]
    assert all(seconds >= 0 for seconds in stages.values())


def test_a_text_of_several_sentences_sums_their_scores(pipeline: Pipeline) -> None:
    async def run() -> None:
        [both], _ = await pipeline.translate(["One cat. Two dogs."], "en", "de", TranslateOptions(max_tokens=5))
        [one, two], _ = await pipeline.translate(["One cat.", "Two dogs."], "en", "de", TranslateOptions(max_tokens=5))
        assert both.text == f"{one.text} {two.text}"
        assert both.score == one.score + two.score
        assert both.tokens == one.tokens + two.tokens

    asyncio.run(run())


@pytest.mark.parametrize("pooling", ["mean", "attention", None])
def test_vectors_are_those_of_the_reference(pipeline: Pipeline, tiny_checkpoint: Path, pooling: str | None) -> None:
    """Unless one is asked for, they are pooled by attention, which this model has."""
    loaded = checkpoint.load(tiny_checkpoint)
    assert loaded.pooling
    _, vectors, _ = asyncio.run(pipeline.encode(["Hello there.", "No."], "en", "de", pooling))
    for text, [vector] in zip(["Hello there.", "No."], vectors, strict=True):
        ids = loaded.tokenizer.source(text, "de")
        source, lengths = torch.tensor([ids]), torch.tensor([len(ids)])
        with torch.inference_mode():
            if pooling == "mean":
                [expected] = loaded.model.sentence_vectors(source, lengths)
            else:
                [expected] = loaded.pooling(loaded.model.encode(source, lengths).memory, lengths).vectors
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_model_without_a_pooling_of_its_own_gives_the_mean(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / checkpoint.POOLING).unlink()
    monkeypatch.setattr(verify, "BATCH_SIZES", (2,))
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32")
    pipeline = Pipeline(Settings(bundle=tmp_path / "bundle", cpus=1))
    try:
        _, given, _ = asyncio.run(pipeline.encode(["Hello there."], "en", "de"))
        _, mean, _ = asyncio.run(pipeline.encode(["Hello there."], "en", "de", "mean"))
        assert np.array_equal(given[0], mean[0])
        with pytest.raises(Invalid, match="pooling: 'attention' is none of this model's: mean, none"):
            asyncio.run(pipeline.encode(["Hello there."], "en", "de", "attention"))
    finally:
        pipeline.close()


def test_limits_name_the_text_that_breaks_them(pipeline: Pipeline) -> None:
    with pytest.raises(TooLarge, match=r"text\.1 has .* tokens in one sentence; the limit is 128"):
        asyncio.run(pipeline.translate(["Hello.", "q" * 2000], "en", "de"))
    with pytest.raises(Invalid, match=r"text\.0: is blank"):
        asyncio.run(pipeline.translate(["", "Hello."], "en", "de"))


def test_a_request_that_is_given_up_leaves_nothing_behind(pipeline: Pipeline) -> None:
    async def run() -> None:
        task = asyncio.create_task(pipeline.translate(["Hello there. " * 200], "en", "de"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [found], _ = await pipeline.translate(["Hello."], "en", "de", TranslateOptions(max_tokens=3))
        assert found.tokens

    asyncio.run(run())


@pytest.mark.parametrize("outcome", ["done", "late", "left"])
def test_nothing_of_a_request_is_left_for_the_garbage_collector(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """What lies about in circles of references is memory until Python looks for it, once in minutes."""
    jobs: list[weakref.ref[Job]] = []

    def noted(*arguments: Any) -> Job:
        job = translation(*arguments)
        jobs.append(weakref.ref(job))
        return job

    async def run() -> str:
        options = TranslateOptions(beam_size=4, max_tokens=40)
        task = asyncio.create_task(pipeline.translate(["Hello there. " * 40], "en", "de", options))
        if outcome == "left":
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            return "left"
        return "late" if isinstance(task.exception(), DeadlineExceeded) else "done"

    monkeypatch.setattr("serving.pipeline.translation", noted)
    if outcome == "late":
        monkeypatch.setattr(pipeline, "_deadline", lambda: time.monotonic() + 0.05)
    gc.disable()
    try:
        found = asyncio.run(run())
        asyncio.run(pipeline.translate(["Hello."], "en", "de"))  # by its end the engine has given the others up
        left = sum(job() is not None for job in jobs)
    finally:
        gc.enable()
    assert (found, len(jobs)) == (outcome, 41)
    assert left <= 1  # the engine may not have returned from the last


def test_no_texts_have_no_translations(pipeline: Pipeline) -> None:
    found, stages = asyncio.run(pipeline.translate([], "en", "de"))
    assert found == []
    assert stages["decode"] == 0


def test_one_that_fails_fails_the_whole_request(tiny_bundle: Path) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1))
    held = Held(pipeline.engine)

    async def run() -> None:
        running = asyncio.create_task(pipeline.translate(["One.", "Two."], "en", "de"))
        await asyncio.to_thread(held.stop)
        with pytest.raises(NotReady):
            await running

    asyncio.run(run())


def test_a_full_queue_is_the_clients_to_know(tiny_bundle: Path) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=1, queue_tokens=100))

    async def run() -> list[object]:
        asked = [
            pipeline.translate(["Hello there. " * 30], "en", "de", TranslateOptions(max_tokens=40)) for _ in range(4)
        ]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = asyncio.run(run())
    pipeline.close()
    # Which of them comes first is the threads' choice, in which texts are cut.
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert 1 <= len(refused) < len(answers)
    assert all(isinstance(answer, QueueFull) for answer in refused)


def test_what_cannot_fit_the_queue_is_refused_before_it_is_read(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=1, queue_tokens=1000))
    held = Held(pipeline.engine)
    try:
        pipeline.engine.submit(greedy([[9] * 50] * 10, 50))
        held.next()
        assert pipeline.engine.waiting_tokens == 900
        monkeypatch.setattr(pipeline.tokenizer, "sources", None)
        with pytest.raises(QueueFull):
            translated(pipeline, ["Hello there. " * 200])
    finally:
        held.release()
        pipeline.close()


def ids(pipeline: Pipeline, text: str) -> torch.Tensor:
    return torch.tensor(pipeline.tokenizer.source(text, "de"))


def translated(pipeline: Pipeline, texts: list[str], prefixes: Sequence[str] = (), **options: Any) -> list[Translation]:
    found, _ = asyncio.run(pipeline.translate(texts, "en", "de", TranslateOptions(**options), prefixes))
    return found


def test_alternatives_are_the_reference_beams_best(pipeline: Pipeline, tiny_checkpoint: Path) -> None:
    model = checkpoint.load(tiny_checkpoint).model
    settings = {"max_tokens": 12, "beam_size": 5, "length_penalty": 0.5, "no_repeat_ngram": 2, "min_tokens": 3}
    [found] = translated(pipeline, ["Hello there."], alternatives=4, **settings)
    expected = beam(model, ids(pipeline, "Hello there."), **settings)
    texts = list(dict.fromkeys(pipeline.tokenizer.decode(each.tokens) for each in expected))[:4]
    assert [each.text for each in found.alternatives] == texts
    assert found.text == texts[0]
    assert found.ids == expected[0].tokens
    np.testing.assert_allclose(found.log_probabilities, expected[0].log_probabilities, atol=1e-4)


def test_each_sentence_of_a_request_draws_for_itself(pipeline: Pipeline, tiny_checkpoint: Path) -> None:
    model = checkpoint.load(tiny_checkpoint).model
    drawn = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 11}
    found = translated(pipeline, ["Hi. Hi.", "Hi."], max_tokens=8, sampling=SamplingOptions(**drawn))
    expected = [sample(model, ids(pipeline, "Hi."), max_tokens=8, **drawn, stream=stream).tokens for stream in range(3)]
    assert len({tuple(each) for each in expected}) == 3
    assert [each.ids for each in found] == [expected[0] + expected[1], expected[2]]


def test_a_prefix_begins_the_first_sentence_of_its_text(pipeline: Pipeline) -> None:
    texts = ["One cat. Two dogs.", "Three birds.", "Four."]
    free = translated(pipeline, texts, no_repeat_ngram=1)
    found = translated(pipeline, texts, ["Drei  Vögel 😀 und", " ", "Vier"], no_repeat_ngram=1)
    assert found[0].text.startswith("Drei Vögel 😀 und")
    assert found[0].text != free[0].text
    assert found[1] == free[1]
    assert found[2].text.startswith("Vier")
    # What it is given does not count against the usual limit.
    assert found[2].tokens == free[2].tokens + len(pipeline.tokenizer.target("Vier")[:-1])


@pytest.mark.parametrize(
    ("prefixes", "options", "said"),
    [
        (["a", "b"], {}, "prefix: has 2 for 1 texts: give one a text"),
        (["one two three four"], {"max_tokens": 4}, r"prefix: has \d+ tokens; max_tokens, 4, leaves none"),
        (["q" * 600], {}, r"prefix: has \d+ tokens; the limit, 128, leaves none"),
        ([], {"beam_size": 17}, "beam_size: is 17; the limit is 16"),
    ],
)
def test_options_that_cannot_be_met_are_named(
    pipeline: Pipeline, prefixes: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        translated(pipeline, ["Hello."], prefixes, **options)


def test_a_minimum_lifts_the_usual_limit(pipeline: Pipeline) -> None:
    usual = pipeline.manifest.model.default_limit(len(pipeline.tokenizer.source("Hi.", "de")))
    [found] = translated(pipeline, ["Hi."], min_tokens=usual + 5)
    assert found.tokens == usual + 5


def test_a_beam_is_as_wide_as_the_rows_at_most(tiny_bundle: Path) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=2))
    try:
        assert translated(pipeline, ["Hi."], beam_size=2, max_tokens=3)
        with pytest.raises(Invalid, match="beam_size: is 3; the limit is 2"):
            translated(pipeline, ["Hi."], beam_size=3)
    finally:
        pipeline.close()


def test_a_stream_that_is_closed_stops_its_work(pipeline: Pipeline) -> None:
    async def run() -> None:
        stream = pipeline.stream(["Hello there. " * 50], "en", "de", TranslateOptions(no_repeat_ngram=1))
        assert isinstance(await anext(stream), Delta)
        await stream.aclose()
        await asyncio.sleep(0.2)
        assert not len(pipeline.engine._scheduler)

    asyncio.run(run())


@pytest.mark.parametrize("limit", [300, 40])
def test_attention_over_more_than_the_model_or_the_settings_allow_is_refused_and_harms_nobody(
    tiny_bundle: Path, limit: int
) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, max_attention_tokens=limit))
    most = min(limit, 128)
    asked = ("Hello.", "en", "de", "encoder-decoder", None, None)

    async def run() -> None:
        with pytest.raises(TooLarge, match=rf"translation has .* tokens; the limit is {most}"):
            await pipeline.attention(asked[0], "word " * 150, *asked[1:])
        with pytest.raises(TooLarge, match=r"text has .* tokens"):
            await pipeline.attention("word " * 150, None, *asked[1:])
        seen, _ = await pipeline.attention(asked[0], None, *asked[1:])
        assert len(seen.queries) <= most

    try:
        asyncio.run(run())
        pipeline.engine.check_health()
    finally:
        pipeline.close()


@pytest.mark.parametrize("part", ["sources", "decode"])
def test_a_fault_of_the_tokenizer_ends_one_request(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1))
    whole = getattr(pipeline.tokenizer, part)
    calls = iter([1])

    def once(*arguments: Any) -> Any:
        if next(calls, None):
            raise RuntimeError("planted")
        return whole(*arguments)

    async def run() -> None:
        await pipeline.translate(["Hello."], "en", "de", TranslateOptions(max_tokens=4))
        monkeypatch.setattr(pipeline.tokenizer, part, once)
        asked = [pipeline.translate([text], "en", "de", TranslateOptions(max_tokens=4)) for text in ("One.", "Two.")]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(end, RuntimeError) for end in ends] == [True, False]

    try:
        asyncio.run(run())
        assert pipeline.engine.load == pipeline.engine.waiting_tokens == 0
    finally:
        pipeline.close()


def test_a_request_of_which_a_part_fails_ends_at_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it is not worked on any more: counted are the steps it would take."""
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=2))
    encode = pipeline.engine._runtime._encode
    work = pipeline.engine.work
    asked = ["Hello."] * 20, "en", "de", TranslateOptions(min_tokens=30, max_tokens=30)
    asyncio.run(pipeline.translate(*asked))
    whole = work.steps
    assert whole >= 10 * 30

    def broken(session: Any, batch: list[list[int]]) -> Any:
        return 1 / 0 if len(batch[0]) > 60 else encode(session, batch)

    monkeypatch.setattr(pipeline.engine._runtime, "_encode", broken)

    async def run() -> None:
        with pytest.raises(ServiceError, match="a bug of the service"):
            await pipeline.translate(["Hello.", "word " * 50, *asked[0]], *asked[1:])

    try:
        asyncio.run(run())
        wait_until(lambda: pipeline.engine.load == 0)
        assert work.steps - whole < whole / 2
    finally:
        pipeline.close()


def test_a_stream_that_cannot_be_told_ends_with_the_reason(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, stream_interval=0))
    monkeypatch.setattr("serving.streaming.Detokenizer.end", lambda _: 1 / 0)

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            async for _ in pipeline.stream(["Hello.", "Another one."], "en", "de", TranslateOptions(max_tokens=5)):
                pass

    try:
        asyncio.run(run())
        wait_until(lambda: pipeline.engine.load == 0)
        pipeline.engine.check_health()
    finally:
        pipeline.close()
