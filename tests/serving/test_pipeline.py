import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint
from model.translate import translate
from serving.errors import Invalid, QueueFull, TooLarge
from serving.pipeline import Pipeline
from serving.settings import Settings


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
    found, stages = asyncio.run(pipeline.translate(texts, "en", "de", None))
    assert [each.text for each in found] == [expected[index] for index in range(len(texts))]
    assert all(seconds >= 0 for seconds in stages.values())


def test_a_text_of_several_sentences_sums_their_scores(pipeline: Pipeline) -> None:
    async def run() -> None:
        [both], _ = await pipeline.translate(["One cat. Two dogs."], "en", "de", 5)
        [one, two], _ = await pipeline.translate(["One cat.", "Two dogs."], "en", "de", 5)
        assert both.text == f"{one.text} {two.text}"
        assert both.score == one.score + two.score
        assert both.tokens == one.tokens + two.tokens

    asyncio.run(run())


def test_vectors_are_those_of_the_reference(pipeline: Pipeline, tiny_checkpoint: Path) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    _, vectors, _ = asyncio.run(pipeline.encode(["Hello there.", "No."], "en", "de", pooled=True))
    for text, [vector] in zip(["Hello there.", "No."], vectors, strict=True):
        ids = loaded.tokenizer.source(text, "de")
        with torch.inference_mode():
            [expected] = loaded.model.sentence_vectors(torch.tensor([ids]), torch.tensor([len(ids)]))
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_limits_name_the_text_that_breaks_them(pipeline: Pipeline) -> None:
    with pytest.raises(TooLarge, match=r"text\.1 has .* tokens in one sentence; the limit is 128"):
        asyncio.run(pipeline.translate(["Hello.", "q" * 2000], "en", "de", None))
    with pytest.raises(Invalid, match=r"text\.0: is blank"):
        asyncio.run(pipeline.translate(["", "Hello."], "en", "de", None))


def test_a_request_that_is_given_up_leaves_nothing_behind(pipeline: Pipeline) -> None:
    async def run() -> None:
        task = asyncio.create_task(pipeline.translate(["Hello there. " * 200], "en", "de", None))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [found], _ = await pipeline.translate(["Hello."], "en", "de", 3)
        assert found.tokens

    asyncio.run(run())


def test_a_full_queue_is_the_clients_to_know(tiny_bundle: Path) -> None:
    pipeline = Pipeline(Settings(bundle=tiny_bundle, cpus=1, rows=1, queue_tokens=100))

    async def run() -> list[object]:
        asked = [pipeline.translate(["Hello there. " * 30], "en", "de", 40) for _ in range(4)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = asyncio.run(run())
    pipeline.close()
    # Which of them comes first is the threads' choice, in which texts are cut.
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert 1 <= len(refused) < len(answers)
    assert all(isinstance(answer, QueueFull) for answer in refused)
