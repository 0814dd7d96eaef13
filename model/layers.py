"""The parts around attention: positions, feed-forward, and the two kinds of layer."""

import math

import torch
from torch import Tensor, nn

from model.attention import Attended, CrossAttention, MaskedSelfAttention, SelfAttention
from model.config import ModelConfig


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """``[length, width]`` fp32: sines on even columns, cosines on odd ones (section 3.5)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


class FeedForward(nn.Module):
    """Two linear maps with an activation between, the same at every position (section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.GELU()
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., width]``."""
        return self.outer(self.activation(self.inner(states)))


class Residual(nn.Module):
    """The norm and the dropout around one sub-layer's residual sum, in the paper's order ("post") or before ("pre")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.pre = config.norm == "pre"

    def enter(self, states: Tensor) -> Tensor:
        """What the sub-layer reads."""
        return self.norm(states) if self.pre else states

    def leave(self, states: Tensor, change: Tensor) -> Tensor:
        """The residual sum of ``states`` and what the sub-layer made of them."""
        total = states + self.dropout(change)
        return total if self.pre else self.norm(total)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward (section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.width, config.heads)
        self.self_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, source: Tensor, visible: Tensor) -> tuple[Tensor, Attended]:
        """``source`` ``[batch, length, width]``; returns the same shape, and what its attention saw."""
        attended = self.self_attention(self.self_residual.enter(source), visible)
        source = self.self_residual.leave(source, attended.output)
        change = self.feed_forward(self.feed_forward_residual.enter(source))
        return self.feed_forward_residual.leave(source, change), attended


class DecoderLayer(nn.Module):
    """Masked self-attention, encoder-decoder attention, then feed-forward (section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = MaskedSelfAttention(config.width, config.heads)
        self.self_residual = Residual(config)
        self.cross_attention = CrossAttention(config.width, config.heads)
        self.cross_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, target: Tensor, memory: Tensor, visible: Tensor) -> tuple[Tensor, Attended, Attended]:
        """``target`` ``[batch, queries, width]``, ``memory`` ``[batch, keys, width]``, ``visible`` over the keys.

        Returns target states of the same shape, and what its self-attention and its encoder-decoder attention saw.
        """
        attended_self = self.self_attention(self.self_residual.enter(target))
        target = self.self_residual.leave(target, attended_self.output)
        attended_cross = self.cross_attention(self.cross_residual.enter(target), memory, visible)
        target = self.cross_residual.leave(target, attended_cross.output)
        change = self.feed_forward(self.feed_forward_residual.enter(target))
        return self.feed_forward_residual.leave(target, change), attended_self, attended_cross
