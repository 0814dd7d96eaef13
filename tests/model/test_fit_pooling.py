import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointConfig
from model.config import ModelConfig
from model.fit_pooling import PoolingSettings, _batches, draw, encode, fit, ranking_loss, rate, tokenised, vectors
from model.pairs import Pair
from model.pooling import AttentionPooling
from model.retrieval import wrong_nearest
from model.tokenizer import Tokenizer
from model.transformer import Transformer

quiet = Console(file=io.StringIO())
SMALL = PoolingSettings(pairs=200, queries=4, narrow=8, batch=64, steps=60, evaluate_every=30, learning_rate=0.01)


@pytest.fixture(scope="module")
def loaded(tiny_tokenizer: Tokenizer, tiny_config: ModelConfig) -> Checkpoint:
    """A model of random weights that reads both languages."""
    torch.manual_seed(1)
    config = CheckpointConfig(name="tiny", pairs=(("en", "de"), ("de", "en")), model=tiny_config)
    return Checkpoint(config, Transformer(tiny_config).eval(), tiny_tokenizer)


@pytest.fixture(scope="module")
def pairs(sentences: list[str]) -> list[Pair]:
    """Text and what stands for its translation: every other word of it, the last one first."""
    usable = [text for text in sentences if 4 <= len(text.split()) <= 20]
    return [Pair(text, " ".join(text.split()[::-2]), "own") for text in usable]


def test_it_learns_to_find_translations_it_was_not_shown(loaded: Checkpoint, pairs: list[Pair], tmp_path: Path) -> None:
    train, dev = pairs[:-60], pairs[-60:]
    before = AttentionPooling(32, 4, 8)
    fitted, wrong = fit(loaded, train, dev, SMALL, quiet)
    sides = tokenised(loaded, dev, 128)

    def found(pooling: AttentionPooling) -> float:
        memories = [encode(loaded, ids, tmp_path / str(side), quiet) for side, ids in enumerate(sides)]
        return wrong_nearest(*(vectors(pooling, each) for each in memories)).mean

    assert found(fitted) == wrong.mean
    assert wrong.mean < 0.75 * found(before)
    again, _ = fit(loaded, train, dev, SMALL, quiet)
    assert all(torch.equal(one, other) for one, other in zip(fitted.parameters(), again.parameters(), strict=True))


def test_the_memory_is_kept_as_the_encoder_gives_it(loaded: Checkpoint, pairs: list[Pair], tmp_path: Path) -> None:
    """Whatever the order and the padding it was computed in; but for bf16."""
    sources, _ = tokenised(loaded, pairs[:40], 128)
    memories = encode(loaded, sources, tmp_path / "states", quiet)
    assert memories.lengths.tolist() == [len(ids) for ids in sources]
    batch, lengths = memories.batch(np.array([7, 3]))
    for row, index in enumerate((7, 3)):
        length = torch.tensor([len(sources[index])])
        with torch.inference_mode():
            expected = loaded.model.encode(torch.tensor([sources[index]]), length).memory[0]
        assert lengths[row] == length[0]
        torch.testing.assert_close(batch[row, : length[0]].float(), expected, atol=0.1, rtol=0.05)
        assert not batch[row, length[0] :].any()


def test_pairs_are_drawn_by_the_weight_of_their_origin() -> None:
    text = [Pair(f"a sentence number {n}", "x", origin) for origin in ("often", "seldom", "never") for n in range(300)]
    text.append(Pair("too short", "x", "often"))
    settings = PoolingSettings(pairs=300, weights={"seldom": 0.25, "never": 0})
    drawn = draw(text, settings)
    counts = {origin: sum(pair.origin == origin for pair in drawn) for origin in ("often", "seldom", "never")}
    assert len(set(drawn)) == 300
    assert counts["never"] == 0
    assert 2 < counts["often"] / counts["seldom"] < 5
    assert Pair("too short", "x", "often") not in draw(text, PoolingSettings())
    assert draw(text, settings) == drawn


def test_the_loss_is_the_cross_entropy_of_both_ways() -> None:
    first = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    second = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    scores = (first @ second.T / 0.5).exp()
    forth = -(scores.diag() / scores.sum(1)).log().mean()
    back = -(scores.diag() / scores.sum(0)).log().mean()
    torch.testing.assert_close(ranking_loss(first, second, 0.5), (forth + back) / 2, atol=0.01, rtol=0.01)
    assert ranking_loss(first, first, 0.05) < 0.1


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    assert rate(1, 1000) == 0.01
    assert rate(100, 1000) == rate(400, 1000) == 1
    assert rate(701, 1000) == 0.5
    assert 0 < rate(1000, 1000) < 0.01


def test_what_cannot_be_fitted_is_said(loaded: Checkpoint, pairs: list[Pair], tiny_checkpoint: Path) -> None:
    with pytest.raises(
        ValueError, match="20 pairs to fit on and 5 of dev are neither too short nor too long: a step takes 64"
    ):
        fit(loaded, pairs[:20], pairs[-5:], SMALL, quiet)
    with pytest.raises(ValueError, match="the model does not read de"):
        fit(checkpoint.load(tiny_checkpoint), pairs, pairs, SMALL, quiet)
    with pytest.raises(ValueError, match=r"the fit diverged at step \d+: a smaller learning_rate may help"):
        fit(loaded, pairs, pairs, SMALL.model_copy(update={"learning_rate": 1e30}), quiet)
    told = Console(file=io.StringIO(), width=200)
    with pytest.raises(ValueError, match="pairs to fit on"):
        fit(loaded, pairs[:20], pairs, SMALL.model_copy(update={"weights": {"owm": 1, "own": 1}}), told)
    assert isinstance(told.file, io.StringIO)
    assert told.file.getvalue() == "weights names origins that the data do not have: owm\n"


def test_a_disk_without_room_is_said_beforehand(
    loaded: Checkpoint, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"GB left; .* are needed: name another folder with TMPDIR, or ask for fewer"):
        encode(loaded, tokenised(loaded, pairs[:9], 128)[0], tmp_path / "states", quiet)


def test_every_sentence_has_its_turn() -> None:
    """Also those that would be left over at the end of the order."""
    batches = _batches(np.arange(5, 75), SMALL.model_copy(update={"batch": 32}))
    seen = {int(row) for _ in range(60) for row in next(batches)}
    assert seen == set(range(70))
