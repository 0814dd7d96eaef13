"""The PyTorch model as a fast loop runs it: each source read once, keys and values kept in buffers of fixed shapes."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from model.layers import DecoderLayer, EncoderLayer
from model.transformer import Transformer


def side_by_side(*linears: nn.Linear) -> nn.Linear:
    """``linears``, which read the same states, as one product."""
    whole = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))
    whole.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]))
    whole.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]))
    return whole


class EncoderBlock(nn.Module):
    """An `EncoderLayer` that keeps nothing of its attention to be looked at."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        attention = layer.self_attention
        self.layer, self.heads = layer, attention.heads
        self.projections = side_by_side(attention.query, attention.key, attention.value)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        """``states`` ``[sentences, source, width]``, ``visible`` ``[sentences, 1, 1, source]``; the same shape."""
        layer = self.layer
        projected = self.projections(layer.self_residual.enter(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        attended = scaled_dot_product_attention(query, key, value, visible).transpose(1, 2).flatten(2)
        states = layer.self_residual.leave(states, layer.self_attention.output(attended))
        change = layer.feed_forward(layer.feed_forward_residual.enter(states))
        return layer.feed_forward_residual.leave(states, change)


class DecoderBlock(nn.Module):
    """A `DecoderLayer` for one position at a time."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        attention = layer.self_attention
        self.layer, self.heads = layer, attention.heads
        self.projections = side_by_side(attention.query, attention.key, attention.value)

    def forward(
        self, states: Tensor, cache: Tensor, cross: Tensor, position: Tensor, written: Tensor, visible: Tensor
    ) -> Tensor:
        """``states`` ``[sentences, beam, width]`` at ``position`` ``[1]``; the same shape.

        ``cache`` ``[sentences, beam, 2, heads, target, head_width]`` holds keys and values of the target, and is
        written at ``position``; ``written`` ``[target]`` says which of it may be seen. ``cross`` ``[sentences, 2,
        heads, source, head_width]`` holds those of the source, ``visible`` ``[sentences, 1, 1, source]``.
        """
        layer = self.layer
        sentences, beam, _ = states.shape
        projected = self.projections(layer.self_residual.enter(states)).unflatten(-1, (3, self.heads, -1))
        cache[:, :, :, :, position] = projected[:, :, 1:, :, None]
        keys, values = cache.flatten(0, 1).unbind(1)
        query = projected[:, :, 0].flatten(0, 1)[:, :, None]
        attended = scaled_dot_product_attention(query, keys, values, written[None, None, None])
        change = layer.self_attention.output(attended.reshape(sentences, beam, -1))
        states = layer.self_residual.leave(states, change)
        # The hypotheses of a sentence are the queries of one attention: its source is read once for all of them.
        query = layer.cross_attention.query(layer.cross_residual.enter(states)).unflatten(-1, (self.heads, -1))
        keys, values = cross.unbind(1)
        attended = scaled_dot_product_attention(query.transpose(1, 2), keys, values, visible)
        change = layer.cross_attention.output(attended.transpose(1, 2).flatten(2))
        states = layer.cross_residual.leave(states, change)
        change = layer.feed_forward(layer.feed_forward_residual.enter(states))
        return layer.feed_forward_residual.leave(states, change)


class Network(nn.Module):
    """A `Transformer` cut in two: `encode` a batch of sources, then one `step` after the other. For inference alone."""

    def __init__(self, model: Transformer, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config, self.model = model.config, model
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        across = []
        for encoder_layer in model.encoder:
            assert isinstance(encoder_layer, EncoderLayer)
            self.encoder.append(EncoderBlock(encoder_layer))
        for decoder_layer in model.decoder:
            assert isinstance(decoder_layer, DecoderLayer)
            self.decoder.append(DecoderBlock(decoder_layer))
            across += [decoder_layer.cross_attention.key, decoder_layer.cross_attention.value]
        self.across = side_by_side(*across)
        self.eval().to(device=device, dtype=dtype).requires_grad_(False)

    def encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        """What the decoder's layers attend to, ``[sentences, layers, 2, heads, source, head_width]``."""
        model, length = self.model, source.shape[1]
        visible = (torch.arange(length, device=source.device) < lengths[:, None])[:, None, None]
        states = model.source_embedding(source) * math.sqrt(self.config.width) + model.source_positions[:length]
        for block in self.encoder:
            states = block(states, visible)
        projected = self.across(model.encoder_norm(states))
        return projected.unflatten(-1, (-1, 2, self.config.heads, self.config.head_width)).permute(0, 2, 3, 4, 1, 5)

    def step(self, token: Tensor, position: Tensor, caches: list[Tensor], cross: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``[sentences, beam, vocabulary]`` after ``token`` ``[sentences, beam]`` at ``position`` ``[1]``.

        ``caches`` has a layer's each, and ``cross`` is what `encode` gave; see `DecoderBlock.forward`.
        """
        model, device = self.model, token.device
        written = torch.arange(caches[0].shape[4], device=device) <= position
        visible = (torch.arange(cross.shape[4], device=device) < lengths[:, None])[:, None, None]
        states = model.target_embedding(token) * math.sqrt(self.config.width) + model.target_positions[position]
        for number, block in enumerate(self.decoder):
            states = block(states, caches[number], cross[:, number], position, written, visible)
        logits: Tensor = model.projection(model.decoder_norm(states))
        return logits
