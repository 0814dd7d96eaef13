import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.grow import grow
from model.tokenizer import Tokenizer
from model.transformer import Transformer


@pytest.fixture(scope="module")
def start(tiny_checkpoint: Path) -> Checkpoint:
    return checkpoint.load(tiny_checkpoint)


def larger(config: ModelConfig, **changes: Any) -> Transformer:
    torch.manual_seed(3)
    return Transformer(config.model_copy(update=changes)).eval()


def logits(model: Transformer, texts: list[str], tokenizer: Tokenizer) -> list[torch.Tensor]:
    """By target position, of each text as source and target."""
    found = []
    for text in texts:
        source, target = tokenizer.source(text, "de"), [2, *tokenizer.target(text)[:-1]]
        with torch.inference_mode():
            found.append(model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([target]))[0])
    return found


def test_in_the_beginning_it_computes_what_the_smaller_one_does(start: Checkpoint, sentences: list[str]) -> None:
    model = larger(start.config.model, encoder_layers=4, decoder_layers=3, dropout=0.1)
    assert grow(model, start.tokenizer, start) == start.tokenizer.vocabulary
    texts = sentences[:8]
    for grown, small in zip(
        logits(model, texts, start.tokenizer), logits(start.model, texts, start.tokenizer), strict=True
    ):
        torch.testing.assert_close(grown, small, rtol=1e-5, atol=1e-5)


def test_the_added_layers_learn(start: Checkpoint) -> None:
    model = larger(start.config.model, encoder_layers=3)
    grow(model, start.tokenizer, start)
    before = copy.deepcopy(model.encoder[2].state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.tensor([[5, 9, 12, 3]])
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids, torch.tensor([4]), ids)[0], ids[0]).backward()
        optimizer.step()
    changed = {name for name, value in model.encoder[2].state_dict().items() if not torch.equal(value, before[name])}
    assert {"self_attention.output.weight", "feed_forward.outer.weight", "feed_forward.inner.weight"} <= changed


def test_pieces_take_their_embeddings_along_and_new_ones_are_new(start: Checkpoint, sentences: list[str]) -> None:
    tokenizer = Tokenizer.train(sentences, 800, ["%s", "{name}"])
    model = larger(start.config.model)
    fresh = model.source_embedding.weight.detach().clone()
    known = grow(model, tokenizer, start)
    assert 700 < known < 800
    old, new = list(start.tokenizer), list(tokenizer)
    placeholder, word = new.index("%s"), next(piece for piece in new[300:] if piece in old)
    embeddings = model.source_embedding.weight
    assert torch.equal(embeddings[placeholder], fresh[placeholder])
    assert torch.equal(embeddings[new.index(word)], start.model.source_embedding.weight[old.index(word)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 64}, "width 64 is not the 32"),
        ({"encoder_layers": 1}, "encoder_layers 1 is less than the 2"),
        ({"norm": "post"}, "only a model with norm"),
        ({"tied_embeddings": False}, "tied_embeddings False is not the True"),
    ],
)
def test_what_does_not_fit_is_said(start: Checkpoint, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grow(larger(start.config.model, **changes), start.tokenizer, start)
