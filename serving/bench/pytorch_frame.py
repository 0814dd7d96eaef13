"""A batch of one shape: the buffers at fixed addresses between which a step goes on, and the step made ready to run."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from model.tokenizer import START
from serving.bench.pytorch_network import Network
from serving.bench.pytorch_search import Search

Prepare = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes a call that is made often faster; the call may be made while that is done."""
Step = Callable[[Tensor, Tensor, list[Tensor], Tensor, Tensor], Tensor]
"""`Network.step`, or the same compiled."""


class Shape(NamedTuple):
    """How large the buffers are."""

    sentences: int
    beam: int
    source: int
    """Positions."""
    target: int
    """Positions."""


class Frame:
    """Sentences that are decoded in step, each at the same position."""

    def __init__(self, network: Network, step: Step, search: Search, shape: Shape, prepare: Prepare) -> None:
        parameter = next(network.parameters())
        device, dtype, config = parameter.device, parameter.dtype, network.config
        self.shape, self._network_step, self._search = shape, step, search
        self.sentence = torch.full((shape.sentences,), search.nobody, device=device)
        self.lengths = torch.ones(shape.sentences, dtype=torch.int64, device=device)
        self.token = torch.full((shape.sentences, shape.beam), START, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self._same = torch.arange(shape.sentences * shape.beam, device=device).view(shape.sentences, shape.beam)
        self.parents = self._same.clone()
        """Of each hypothesis, the row of the one that it continues."""

        def room(*sizes: int) -> Tensor:
            """Zeros for keys and values."""
            return torch.zeros((*sizes, config.head_width), device=device, dtype=dtype)

        sentences, beam, layers, heads = shape.sentences, shape.beam, config.decoder_layers, config.heads
        self.cross = room(sentences, layers, 2, heads, shape.source)
        # Hypotheses that fork copy the caches at each step, from one half into the other.
        self._caches = [
            [room(sentences, beam, 2, heads, shape.target) for _ in range(layers)] for _ in range(1 if beam == 1 else 2)
        ]
        self._half = 0
        """Where the caches are that the last step has written."""
        self._steps = [prepare(lambda half=half: self._step(half)) for half in range(len(self._caches))]  # type: ignore[misc]

    def begin(self, sentences: int) -> None:
        """Take in the search's first ``sentences``; `lengths` and `cross` are the caller's to fill."""
        self.sentence.fill_(self._search.nobody)[:sentences] = torch.arange(sentences, device=self.sentence.device)
        self.lengths.fill_(1)
        self.token.fill_(START)
        self.position.zero_()
        self.parents.copy_(self._same)

    def take_over(self, other: Self, sentences: Tensor) -> None:
        """Go on with the ``sentences`` (their rows, as many as there is room for) of ``other``."""
        old, beam = other._caches[other._half], self.shape.beam
        rows = other.parents[sentences].flatten()
        self.sentence.copy_(other.sentence[sentences])
        self.lengths.copy_(other.lengths[sentences])
        self.token.copy_(other.token[sentences])
        self.position.copy_(other.position)
        self.cross.copy_(other.cross[sentences])
        for cache, before in zip(self._caches[0], old, strict=True):
            cache[..., : other.shape.target, :] = before.flatten(0, 1)[rows].unflatten(0, (-1, beam))
        self.parents.copy_(self._same)
        self._half = 0

    def step(self) -> None:
        """Write the next token of every hypothesis."""
        self._half = (self._half + 1) % len(self._steps)
        self._steps[self._half]()

    def _step(self, half: int) -> None:
        caches = self._caches[half]
        if self.shape.beam > 1:
            for cache, before in zip(caches, self._caches[1 - half], strict=True):
                torch.index_select(before.flatten(0, 1), 0, self.parents.flatten(), out=cache.flatten(0, 1))
        logits = self._network_step(self.token, self.position, caches, self.cross, self.lengths)
        token, parents = self._search.choose(logits, self.position, self.sentence)
        self.token.copy_(token)
        self.parents.copy_(parents + self._same[:, :1])
        self.position += 1
