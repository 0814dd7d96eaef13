"""Attention: scaled dot products of queries and keys, a softmax, and a weighted sum of values.

This file is the place to learn it. "Attention Is All You Need", section 3.2, defines

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V

and uses it in three ways, which are three classes here because they differ in where queries, keys and values come
from and in what may be seen:

====================  ================  =================  =================================
use                   queries from      keys, values from  a query may see
====================  ================  =================  =================================
SelfAttention         source            source             every source token
MaskedSelfAttention   target            target             itself and what stands before it
CrossAttention        target            source (memory)    every source token
====================  ================  =================  =================================

The exporter writes each of them as an ONNX function of the same name.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Attended(NamedTuple):
    """What attention computed, with the steps in between so that they can be looked at."""

    output: Tensor
    """``[..., queries, value_width]``: for each query the weighted sum of the values."""
    weights: Tensor
    """``[..., queries, keys]``: the softmax; rows sum to one, and what a query may not see weighs exactly 0."""
    scores: Tensor
    """``[..., queries, keys]``: the scaled dot products before mask and softmax."""


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Attended:
    """The paper's equation (1).

    ``query`` is ``[..., queries, d_k]``, ``key`` ``[..., keys, d_k]``, ``value`` ``[..., keys, d_v]``. ``visible`` is
    boolean and broadcasts to ``[..., queries, keys]``: True where the query may see the key. Each query must see at
    least one key, else its softmax has nothing to share out and is NaN.
    """
    # Without the division the dot products of wide vectors grow like √d_k and push the softmax to where its gradient
    # vanishes (section 3.2.1, footnote 4).
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    masked = scores if visible is None else scores.masked_fill(~visible, -math.inf)
    weights = masked.softmax(dim=-1)
    return Attended(weights @ value, weights, scores)


def causal_visibility(length: int, device: torch.device | None = None) -> Tensor:
    """``[length, length]`` boolean: position i sees positions 0 to i, never its future (section 3.2.3)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def padding_visibility(lengths: Tensor, longest: int) -> Tensor:
    """``[batch, 1, 1, longest]`` boolean from ``lengths`` ``[batch]``: True on tokens, False on padding."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None, None, :]


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own subspace (section 3.2.2).

    The width is projected to queries, keys and values, cut into ``heads`` slices that attend on their own, joined and
    projected once more. ``width`` must be a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def split(self, projected: Tensor) -> Tensor:
        """``[batch, length, width]`` to ``[batch, heads, length, head_width]``."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, attended: Tensor) -> Tensor:
        """``[batch, heads, length, head_width]`` back to ``[batch, length, width]``."""
        return attended.transpose(1, 2).flatten(2)

    def attend(self, target: Tensor, source: Tensor, visible: Tensor | None) -> Attended:
        """Queries from ``target`` ``[batch, queries, width]``; keys, values from ``source`` ``[batch, keys, width]``.

        The returned output is ``[batch, queries, width]``, weights and scores ``[batch, heads, queries, keys]``.
        """
        query, key, value = (
            self.split(projection(states))
            for projection, states in ((self.query, target), (self.key, source), (self.value, source))
        )
        attended = scaled_dot_product_attention(query, key, value, visible)
        return attended._replace(output=self.output(self.join(attended.output)))


class SelfAttention(MultiHeadAttention):
    """Encoder self-attention: every source token looks at every source token."""

    def forward(self, source: Tensor, visible: Tensor) -> Attended:
        """``source`` ``[batch, length, width]``; ``visible`` from `padding_visibility`."""
        return self.attend(source, source, visible)


class MaskedSelfAttention(MultiHeadAttention):
    """Decoder self-attention: every target token looks at itself and at those before it."""

    def forward(self, target: Tensor) -> Attended:
        """``target`` ``[batch, length, width]``. Padding stands at the end, where no real token looks."""
        return self.attend(target, target, causal_visibility(target.shape[1], target.device))


class CrossAttention(MultiHeadAttention):
    """Encoder-decoder attention: every target token looks at the encoder's output, the memory."""

    def forward(self, target: Tensor, memory: Tensor, visible: Tensor) -> Attended:
        """``target`` ``[batch, queries, width]``, ``memory`` ``[batch, keys, width]``; ``visible`` over the keys."""
        return self.attend(target, memory, visible)
