"""One vector for a whole sentence: attention whose queries are learnt instead of read from a text.

The decoder asks the memory a new question at every step. Here a few questions are the same for every sentence, learnt
so that a sentence and its translation get nearly the same vector (`model.fit_pooling`). Keys and values are the memory
itself:

    V = normalise(W · join(V₁ a₁, …, V_q a_q) + b),   a = Attention(Q, memory, memory)

Row i of Q is a learned query and aᵢ what it gathers; Vᵢ narrows it. Since the queries never change, what a key
projection would do to them is part of Q already.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from model.attention import padding_visibility, scaled_dot_product_attention
from model.files import write

QUERIES, NARROW = 8, 64
"""Learned queries of a new pooling, and how many numbers what each gathers is narrowed to."""


class Pooled(NamedTuple):
    """What pooling made of a batch."""

    vectors: Tensor
    """``[batch, width]``, each of length 1."""
    weights: Tensor
    """``[batch, queries, source]``: how much of each source position every query gathers; rows sum to one."""


class AttentionPooling(nn.Module):
    """Pools a memory of ``width`` with ``queries`` learned queries, each narrowed to ``narrow`` numbers."""

    def __init__(self, width: int, queries: int = QUERIES, narrow: int = NARROW) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.5)
        self.value = nn.Parameter(torch.randn(queries, width, narrow) * width**-0.5)
        self.output = nn.Linear(queries * narrow, width)

    def forward(self, memory: Tensor, lengths: Tensor) -> Pooled:
        """Pool ``memory`` ``[batch, source, width]`` whose rows hold ``lengths`` ``[batch]`` tokens each."""
        visible = padding_visibility(lengths, memory.shape[1])[:, 0]
        attended = scaled_dot_product_attention(self.query.to(memory.dtype), memory, memory, visible)
        narrowed = torch.einsum("bqw,qwn->bqn", attended.output, self.value.to(memory.dtype)).flatten(1)
        vectors = nn.functional.linear(narrowed, self.output.weight.to(memory.dtype), self.output.bias.to(memory.dtype))
        return Pooled(nn.functional.normalize(vectors.float(), dim=-1), attended.weights)


def save(path: Path, pooling: AttentionPooling) -> None:
    """Write the weights as fp16."""
    write(path, serialize({name: weight.half().contiguous() for name, weight in pooling.state_dict().items()}))


def load(path: Path, width: int) -> AttentionPooling:
    """The pooling in ``path`` for a memory of ``width``; ValueError says what does not fit."""
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    shape = weights["value"].shape if "value" in weights else ()
    if len(shape) != 3:
        raise ValueError(f"{path.name}: value is missing or no [queries, width, narrow]")
    pooling = AttentionPooling(width, queries=shape[0], narrow=shape[2]).eval()
    try:
        pooling.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ValueError(f"{path.name} holds values that are not finite")
    return pooling
