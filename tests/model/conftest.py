"""What the tests of the model share: random weights, PyTorch's own layers with the same weights, and small models."""

from collections.abc import Callable
from functools import singledispatch
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.config import ModelConfig
from model.layers import DecoderLayer, EncoderLayer, Residual
from model.transformer import Transformer

Layer = TypeVar("Layer", bound=nn.Module)


@singledispatch
def _twin(module: nn.Module) -> nn.Module:
    raise TypeError(type(module))


@_twin.register
def _(attention: MultiHeadAttention) -> nn.MultiheadAttention:
    inputs = (attention.query, attention.key, attention.value)
    theirs = nn.MultiheadAttention(attention.query.in_features, attention.heads, batch_first=True)
    _copy(theirs.in_proj_weight, torch.cat([linear.weight for linear in inputs]))
    _copy(theirs.in_proj_bias, torch.cat([linear.bias for linear in inputs]))
    theirs.out_proj.load_state_dict(attention.output.state_dict())
    return theirs


@_twin.register
def _(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(**_arguments(layer))
    theirs.self_attn = _twin(layer.self_attention)
    return _finish(theirs, layer, [layer.self_residual, layer.feed_forward_residual])


@_twin.register
def _(layer: DecoderLayer) -> nn.TransformerDecoderLayer:
    theirs = nn.TransformerDecoderLayer(**_arguments(layer))
    theirs.self_attn, theirs.multihead_attn = _twin(layer.self_attention), _twin(layer.cross_attention)
    return _finish(theirs, layer, [layer.self_residual, layer.cross_residual, layer.feed_forward_residual])


@_twin.register
def _(model: Transformer) -> nn.Transformer:
    layers = [nn.ModuleList(map(_twin, stack)) for stack in (model.encoder, model.decoder)]
    norms = [norm if isinstance(norm, nn.LayerNorm) else None for norm in (model.encoder_norm, model.decoder_norm)]
    encoder = nn.TransformerEncoder(layers[0][0], len(layers[0]), norms[0], enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(layers[1][0], len(layers[1]), norms[1])
    encoder.layers, decoder.layers = layers
    empty = (nn.Identity(), nn.Identity())
    theirs = nn.Transformer(
        model.config.width, model.config.heads, custom_encoder=empty[0], custom_decoder=empty[1], batch_first=True
    )
    theirs.encoder, theirs.decoder = encoder, decoder  # Given to it, they would be filled with new random weights.
    return theirs


def _copy(parameter: Tensor, values: Tensor) -> None:
    parameter.data.copy_(values)


def _arguments(layer: EncoderLayer | DecoderLayer) -> dict[str, object]:
    inner = layer.feed_forward.inner
    return {
        "d_model": inner.in_features,
        "nhead": layer.self_attention.heads,
        "dim_feedforward": inner.out_features,
        "dropout": 0.0,
        "activation": "relu" if isinstance(layer.feed_forward.activation, nn.ReLU) else "gelu",
        "norm_first": layer.self_residual.pre,
        "batch_first": True,
    }


def _finish(theirs: Layer, layer: EncoderLayer | DecoderLayer, residuals: list[Residual]) -> Layer:
    for number, residual in enumerate(residuals, 1):
        getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())
    theirs.linear1.load_state_dict(layer.feed_forward.inner.state_dict())
    theirs.linear2.load_state_dict(layer.feed_forward.outer.state_dict())
    return theirs


@pytest.fixture(scope="session")
def twin() -> Callable[[nn.Module], nn.Module]:
    """Gives PyTorch's own module of the same kind with the same weights."""
    return _twin


@pytest.fixture(scope="session")
def scramble() -> Callable[..., nn.Module]:
    """Moves every parameter, so that no bias is 0 and no norm is 1, and returns the module."""

    def scramble(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)
        return module

    return scramble


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    torch.manual_seed(11)
    return Transformer(tiny_config).eval()


@pytest.fixture(scope="session")
def decisive() -> Callable[..., Transformer]:
    """Gives a model of few pieces and strong preferences, which writes varied tokens and sometimes the end."""

    def decisive(vocabulary: int = 12, seed: int = 0, std: float = 1.0) -> Transformer:
        torch.manual_seed(seed)
        config = ModelConfig(
            vocabulary=vocabulary,
            width=16,
            heads=2,
            feed_forward=32,
            encoder_layers=1,
            decoder_layers=1,
            tied_embeddings=False,
            max_positions=40,
            dropout=0.0,
        )
        model = Transformer(config).eval()
        nn.init.normal_(model.projection.weight, std=std)
        return model

    return decisive
