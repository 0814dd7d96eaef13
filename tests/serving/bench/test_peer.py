"""CTranslate2 with our weights against the reference search."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.tokenizer import END, START
from model.transformer import Encoded, Transformer
from model.translate import search
from serving.engine.decoding import Decoding

pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install --editable '.[bench]'")

from serving.bench.peer import CTranslate2, convert


@pytest.fixture(scope="module")
def sources(small: Checkpoint, sentences: list[str]) -> list[list[int]]:
    return [small.tokenizer.source(text, "de") for text in sentences[:30]]


def longest(small: Checkpoint, sources: list[list[int]]) -> int:
    return small.model.config.default_limit(max(map(len, sources)))


@pytest.mark.slow
def test_greedy_tokens_equal_the_reference_for_every_sentence(
    small: Checkpoint, converted: Path, sources: list[list[int]]
) -> None:
    peer, expected = CTranslate2(converted, "fp32"), dict(search(small.model, sources))
    found = peer.translate(sources, Decoding(max_tokens=longest(small, sources)))
    # The reference stops each at a limit of its own; CTranslate2 takes one for all.
    limits = [small.model.config.default_limit(len(source)) for source in sources]
    cut = [tokens[:limit] for tokens, limit in zip(found, limits, strict=True)]
    assert cut == [expected[index].tokens for index in range(len(sources))]


@torch.inference_mode()
def beam_as_ctranslate2(model: Transformer, source: list[int], size: int, limit: int) -> list[int]:
    """The reference's beam search but for one rule: only candidates among the ``size`` best can end.

    (The reference also lets those among the next ``size`` end that stand before the last one to go on.)
    """
    encoded = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for step in range(limit):
        target = torch.tensor([[START, *tokens] for _, tokens in live])
        repeated = Encoded(encoded.memory.expand(len(live), -1, -1), encoded.visible, [])
        likely = model.projection(model.decode(target, repeated).states[:, -1]).log_softmax(-1).double().numpy()
        totals = (likely + np.array([[score] for score, _ in live])).ravel()
        order = np.argsort(-totals, kind="stable")[: 2 * size]
        candidates = [
            (float(totals[one]), [*live[one // likely.shape[1]][1], int(one % likely.shape[1])]) for one in order
        ]
        if step == limit - 1:
            ended += candidates[:size]
            break
        spare = (candidate for candidate in candidates[size:] if candidate[1][-1] != END)
        ended += [candidate for candidate in candidates[:size] if candidate[1][-1] == END]
        live = [candidate if candidate[1][-1] != END else next(spare) for candidate in candidates[:size]]
        if len(ended) >= size:
            break
    return max(ended, key=lambda hypothesis: hypothesis[0] / len(hypothesis[1]))[1]


@pytest.mark.slow
def test_beam_tokens_equal_the_reference_with_its_rule_for_ending(
    small: Checkpoint, converted: Path, sources: list[list[int]]
) -> None:
    short = [source for source in sources if len(source) <= 30]
    assert len(short) >= 20
    limit = longest(small, short)
    found = CTranslate2(converted, "fp32").translate(short, Decoding(max_tokens=limit, beam_size=4))
    assert found == [beam_as_ctranslate2(small.model, source, 4, limit) for source in short]


def test_a_batch_cut_in_parts_gives_the_same_and_so_does_a_batch_of_one(
    small: Checkpoint, converted: Path, sources: list[list[int]]
) -> None:
    decoding = Decoding(max_tokens=20)
    whole = CTranslate2(converted, "fp32").translate(sources[:7], decoding)
    cut = CTranslate2(converted, "fp32", threads=2, split=True)
    assert cut.translate(sources[:7], decoding) == whole
    assert cut.translate(sources[:1], decoding) == whole[:1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_writes_exactly_as_many_tokens_as_it_is_told(converted: Path, sources: list[list[int]], precision: str) -> None:
    for beam_size in (1, 4):
        decoding = Decoding(max_tokens=24, min_tokens=24, beam_size=beam_size)
        assert [len(each) for each in CTranslate2(converted, precision).translate(sources[:5], decoding)] == [24] * 5


def test_converts_every_shape_there_is(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = ModelConfig(
        vocabulary=90,
        width=32,
        heads=4,
        feed_forward=64,
        encoder_layers=2,
        decoder_layers=3,
        norm="post",
        activation="gelu",
        positions="learned",
        tied_embeddings=False,
        max_positions=64,
        dropout=0.0,
    )
    model = Transformer(config).eval()
    convert(model, tmp_path / "peer")
    sources = [[7, 30, 31, 32, END], [5, 80, END], list(range(10, 40))]
    found = CTranslate2(tmp_path / "peer", "fp32").translate(sources, Decoding(max_tokens=16))
    expected = dict(search(model, sources))
    assert found == [expected[index].tokens[:16] for index in range(3)]
