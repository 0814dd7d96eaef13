import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.attention import causal_visibility
from model.config import ModelConfig
from model.transformer import Transformer

BASE_PARAMETERS = 63_082_496
LENGTHS = torch.tensor([9, 4, 1])
GENERATOR = torch.Generator().manual_seed(5)
SOURCE = torch.randint(50, (3, 9), generator=GENERATOR)
TARGET = torch.randint(50, (3, 6), generator=GENERATOR)

SMALL = ModelConfig(
    vocabulary=50,
    width=24,
    heads=3,
    feed_forward=40,
    encoder_layers=2,
    decoder_layers=3,
    max_positions=16,
    dropout=0.0,
)
KINDS = [
    {"norm": "post", "activation": "relu", "positions": "sinusoidal", "tied_embeddings": True},
    {"norm": "pre", "activation": "gelu", "positions": "learned", "tied_embeddings": False},
    {"norm": "pre", "activation": "relu", "positions": "sinusoidal", "tied_embeddings": False},
    {"norm": "post", "activation": "gelu", "positions": "learned", "tied_embeddings": True},
]
every_kind = pytest.mark.parametrize(
    "config",
    [SMALL.model_copy(update=kind) for kind in KINDS],
    ids=lambda c: f"{c.norm}-{c.positions}-{c.tied_embeddings}",
)


@pytest.fixture
def model(config: ModelConfig, scramble: Callable[..., nn.Module]) -> Transformer:
    torch.manual_seed(3)
    model = scramble(Transformer(config))
    assert isinstance(model, Transformer)
    return model


@every_kind
def test_the_whole_model_equals_that_of_torch(model: Transformer, twin: Callable[[nn.Module], nn.Module]) -> None:
    weights = model.state_dict()
    inputs = []
    for side, ids in (("source", SOURCE), ("target", TARGET)):
        positions = getattr(model, f"{side}_positions")[: ids.shape[1]]
        inputs.append(weights[f"{side}_embedding.weight"][ids] * math.sqrt(24) + positions)
    padding = torch.arange(9) >= LENGTHS[:, None]
    states = twin(model)(
        *inputs, tgt_mask=~causal_visibility(6), src_key_padding_mask=padding, memory_key_padding_mask=padding
    )
    expected = states @ weights["projection.weight"].T
    torch.testing.assert_close(model(SOURCE, LENGTHS, TARGET), expected, atol=1e-4, rtol=1e-5)


@every_kind
def test_a_later_target_token_changes_nothing_before_it(model: Transformer) -> None:
    before = model(SOURCE, LENGTHS, TARGET)
    for position in range(1, TARGET.shape[1]):
        changed = TARGET.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 50
        after = model(SOURCE, LENGTHS, changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(after[:, position], before[:, position], atol=1e-3)


@every_kind
@pytest.mark.parametrize("longer", [0, 7])
def test_padding_changes_nothing(model: Transformer, longer: int) -> None:
    padded = torch.full((3, 9 + longer), 49)
    for row, ids, length in zip(padded, SOURCE, LENGTHS, strict=True):
        row[:length] = ids[:length]
    assert not torch.equal(padded[:, :9], SOURCE)
    torch.testing.assert_close(model(padded, LENGTHS, TARGET), model(SOURCE, LENGTHS, TARGET), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.sentence_vectors(padded, LENGTHS), model.sentence_vectors(SOURCE, LENGTHS), atol=2e-6, rtol=0
    )


@every_kind
def test_a_sentence_in_a_batch_is_read_as_alone(model: Transformer) -> None:
    together = model(SOURCE, LENGTHS, TARGET)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(SOURCE[row : row + 1, :length], LENGTHS[row : row + 1], TARGET[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=2e-5, rtol=1e-5)


@every_kind
def test_a_sentence_vector_is_the_mean_memory_of_length_one(model: Transformer) -> None:
    vectors, memory = model.sentence_vectors(SOURCE, LENGTHS), model.encode(SOURCE, LENGTHS).memory
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    for vector, states, length in zip(vectors, memory, LENGTHS.tolist(), strict=True):
        mean = states[:length].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=2e-6, rtol=1e-5)


@every_kind
def test_every_layer_shows_its_attention(model: Transformer) -> None:
    encoded = model.encode(SOURCE, LENGTHS)
    decoded = model.decode(TARGET, encoded)
    shapes = [
        [attended.weights.shape for attended in kind]
        for kind in (encoded.attention, decoded.self_attention, decoded.cross_attention)
    ]
    assert shapes == [[(3, 3, 9, 9)] * 2, [(3, 3, 6, 6)] * 3, [(3, 3, 6, 9)] * 3]


def test_the_base_model_of_the_paper_has_63_million_parameters() -> None:
    width, inner = 512, 2048
    attention, norm = 4 * (width * width + width), 2 * width
    feed_forward = 2 * width * inner + inner + width
    layers = 6 * (attention + feed_forward + 2 * norm) + 6 * (2 * attention + feed_forward + 3 * norm)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in Transformer(ModelConfig()).parameters())
    assert counted == 37_000 * width + layers == BASE_PARAMETERS


@pytest.mark.parametrize("tokens", [17, 40])
def test_more_tokens_than_positions_are_a_value_error(tokens: int) -> None:
    model, ids, one = Transformer(SMALL), torch.zeros(1, tokens, dtype=torch.int64), torch.tensor([1])
    with pytest.raises(ValueError, match=f"{tokens} tokens are more than this model's 16"):
        model.encode(ids, one)
    encoded = model.encode(ids[:, :16], one)
    with pytest.raises(ValueError, match=f"{tokens} tokens are more than this model's 16"):
        model.decode(ids, encoded)
    assert model.decode(ids[:, :16], encoded).states.shape == (1, 16, 24)


def test_tied_embeddings_are_one_parameter() -> None:
    model = Transformer(SMALL)
    assert model.source_embedding.weight is model.target_embedding.weight is model.projection.weight
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (50, 24)]
    assert names == ["source_embedding.weight"]


def test_untied_embeddings_are_three_parameters() -> None:
    model = Transformer(SMALL.model_copy(update={"tied_embeddings": False}))
    weights = [model.source_embedding.weight, model.target_embedding.weight, model.projection.weight]
    assert len({weight.data_ptr() for weight in weights}) == 3
    assert len([name for name, parameter in model.named_parameters() if parameter.shape == (50, 24)]) == 3


@pytest.mark.parametrize(("kind", "expected"), [("learned", 2), ("sinusoidal", 0)])
def test_positions_are_parameters_only_when_learned(kind: str, expected: int) -> None:
    model = Transformer(SMALL.model_copy(update={"positions": kind}))
    assert sum("positions" in name for name, _ in model.named_parameters()) == expected
    assert sum("positions" in name for name in model.state_dict()) == expected


@every_kind
def test_the_same_seed_makes_the_same_model(config: ModelConfig) -> None:
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return Transformer(config).state_dict()

    first, *others = [weights() for _ in range(20)]
    for other in others:
        assert all(torch.equal(other[name], weight) for name, weight in first.items())
