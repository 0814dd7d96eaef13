from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from model.attention import causal_visibility, padding_visibility
from model.config import ModelConfig
from model.layers import DecoderLayer, EncoderLayer, FeedForward, sinusoidal_positions

Twin = Callable[[nn.Module], nn.Module]
LENGTHS = torch.tensor([6, 2, 1])
VISIBLE = padding_visibility(LENGTHS, 6)

every_layer = pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            ModelConfig(width=24, heads=3, feed_forward=40, norm=norm, activation=activation, dropout=0.0),
            id=f"{norm}-{activation}",
        )
        for norm in ("pre", "post")
        for activation in ("relu", "gelu")
    ],
)


@pytest.mark.parametrize(("length", "width"), [(1, 2), (7, 6), (256, 512), (1000, 64)])
def test_positions_are_the_formula_of_the_paper(length: int, width: int) -> None:
    expected = np.empty((length, width))
    for pair in range(width // 2):
        angle = np.arange(length) / 10_000.0 ** (2 * pair / width)
        expected[:, 2 * pair], expected[:, 2 * pair + 1] = np.sin(angle), np.cos(angle)
    positions = sinusoidal_positions(length, width)
    assert positions.dtype == torch.float32
    np.testing.assert_allclose(positions.numpy(), expected, atol=2e-7 * length + 1e-6, rtol=0)


@every_layer
def test_encoder_layer_equals_that_of_torch(
    config: ModelConfig, twin: Twin, scramble: Callable[..., nn.Module]
) -> None:
    layer = scramble(EncoderLayer(config))
    source = torch.randn(3, 6, 24, generator=torch.Generator().manual_seed(1))
    states, attended = layer(source, VISIBLE)
    expected = twin(layer)(source, src_key_padding_mask=~VISIBLE[:, 0, 0])
    torch.testing.assert_close(states, expected, atol=5e-6, rtol=1e-5)
    assert attended.weights.shape == (3, 3, 6, 6)


@every_layer
def test_decoder_layer_equals_that_of_torch(
    config: ModelConfig, twin: Twin, scramble: Callable[..., nn.Module]
) -> None:
    layer = scramble(DecoderLayer(config))
    generator = torch.Generator().manual_seed(2)
    target, memory = torch.randn(3, 5, 24, generator=generator), torch.randn(3, 6, 24, generator=generator)
    states, attended_self, attended_cross = layer(target, memory, VISIBLE)
    expected = twin(layer)(
        target, memory, tgt_mask=~causal_visibility(5), memory_key_padding_mask=~VISIBLE[:, 0, 0], tgt_is_causal=True
    )
    torch.testing.assert_close(states, expected, atol=5e-6, rtol=1e-5)
    assert attended_self.weights.shape == (3, 3, 5, 5)
    assert attended_cross.weights.shape == (3, 3, 5, 6)


@every_layer
def test_feed_forward_treats_every_position_alike(config: ModelConfig, scramble: Callable[..., nn.Module]) -> None:
    feed_forward = scramble(FeedForward(config))
    states = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(3))
    alone = torch.stack([torch.stack([feed_forward(token) for token in row]) for row in states])
    torch.testing.assert_close(feed_forward(states), alone, atol=2e-6, rtol=1e-5)


@every_layer
def test_dropout_acts_in_training_only(config: ModelConfig) -> None:
    layer = EncoderLayer(config.model_copy(update={"dropout": 0.5}))
    source = torch.randn(3, 6, 24, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    assert not torch.equal(layer(source, VISIBLE)[0], layer(source, VISIBLE)[0])
    layer.eval()
    assert torch.equal(layer(source, VISIBLE)[0], layer(source, VISIBLE)[0])
