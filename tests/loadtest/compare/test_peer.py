"""The service that is compared with: the real one over HTTP, and its batches."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install --editable '.[compare]'")

import ctranslate2

from loadtest.compare.peer import Batcher
from loadtest.figures import figures, processes
from model.checkpoint import TOKENIZER, Checkpoint, locate
from model.tokenizer import END
from tests.conftest import SMALL
from tests.processes import within
from tests.service import free_port, running


@pytest.fixture(scope="module")
def translator(converted: Path) -> ctranslate2.Translator:
    return ctranslate2.Translator(str(converted), compute_type="int8", inter_threads=2)


@pytest.fixture(scope="module")
def peer(converted: Path, small: Checkpoint) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "loadtest.compare.peer", "--port", str(port), "--max-batch", "8"]
    command += ["--processes", "2"]
    command += ["--model", str(converted), "--tokenizer", str(locate(SMALL) / TOKENIZER)]
    command += ["--language", str(small.tokenizer.language_id("de"))]
    with running(command, port):
        yield f"http://127.0.0.1:{port}"


def pieces(small: Checkpoint, text: str) -> list[str]:
    return [str(token) for token in small.tokenizer.source(text, "de")]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_it_answers_side_by_side_what_the_translator_says_alone(
    peer: str, small: Checkpoint, translator: ctranslate2.Translator, sentences: list[str], beam_size: int
) -> None:
    """In int8 the translator scales by row, so company does not change a sentence but where beams are close."""
    texts = [text for text in sentences if text.isascii()][:20]
    assert within(60, lambda: len(processes(peer)) == 2) is not None
    before = figures(peer)

    def ask(text: str) -> str:
        body = json.dumps({"text": text, "beam_size": beam_size}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{peer}/v1/translate", body, headers)) as answer:
            return str(json.loads(answer.read())["translations"][0]["text"])

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, texts))
    alone = []
    for text in texts:
        read = pieces(small, text)
        [result] = translator.translate_batch([read], beam_size=beam_size, max_decoding_length=2 * len(read) + 10)
        alone.append(small.tokenizer.decode([int(piece) for piece in result.hypotheses[0]]))
    assert sum(one == other for one, other in zip(found, alone, strict=True)) >= 18
    counted = figures(peer)
    assert counted["sentences_total"] - before["sentences_total"] == 20, "any of them tells what both have done"
    assert 0 < counted["batches_total"] < counted["sentences_total"]
    assert 0 < counted["source_tokens_total"] < counted["padded_tokens_total"]


def test_each_sentence_of_a_batch_has_the_length_it_asked_for(
    translator: ctranslate2.Translator, small: Checkpoint
) -> None:
    lengths = [3, 17, 9, 1, 30]

    async def run() -> list[list[int]]:
        batcher = Batcher(translator, 1, max_batch=8)
        read = pieces(small, "The file could not be opened.")
        found = await asyncio.gather(*(batcher.translate(read, 1, length) for length in lengths))
        assert batcher.counts.batches == 1
        return found

    found = asyncio.run(run())
    assert [len(tokens) for tokens in found] == lengths
    assert all(END not in tokens for tokens in found)


class Failing:
    """A translator that fails whenever it is given the piece "bad"."""

    def translate_batch(self, batch: Sequence[Sequence[str]], **_: Any) -> list[Any]:
        if any("bad" in tokens for tokens in batch):
            raise RuntimeError("no")
        return [type("Result", (), {"hypotheses": [["7"]]})() for _ in batch]


def test_a_batch_that_fails_takes_nobody_else_with_it() -> None:
    async def run() -> list[Any]:
        batcher = Batcher(Failing(), 1, max_batch=1)
        asked = (["good"], ["bad"], ["good"])
        return await asyncio.gather(*(batcher.translate(each, 1, None) for each in asked), return_exceptions=True)

    first, failed, last = asyncio.run(run())
    assert first == last == [7]
    assert isinstance(failed, RuntimeError)


def test_a_batch_holds_one_kind_and_no_more_than_it_may() -> None:
    seen: list[tuple[int, int]] = []

    class Recording(Failing):
        def translate_batch(self, batch: Sequence[Sequence[str]], **options: Any) -> list[Any]:
            seen.append((options["beam_size"], len(batch)))
            return super().translate_batch(batch)

    async def run() -> None:
        batcher = Batcher(Recording(), 1, max_batch=3)
        await asyncio.gather(*(batcher.translate(["good"], beam, None) for beam in (1, 4, 1, 1, 4, 1, 1)))

    asyncio.run(run())
    assert sorted(seen) == [(1, 2), (1, 3), (4, 2)]
