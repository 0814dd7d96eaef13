"""Attention that can be seen: which kind, in which layer and heads, between which tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from model.config import ModelConfig
from serving.errors import Invalid

Array = NDArray[Any]

KINDS = {"encoder": "encoder.{}.self", "decoder": "decoder.{}.self", "encoder-decoder": "decoder.{}.cross"}
"""Kinds of attention to the names of their arrays."""


@dataclass(frozen=True)
class Attention:
    """One kind of attention in one layer."""

    kind: str
    layer: int
    queries: list[str]
    keys: list[str]
    """Pieces, as the tokenizer writes them."""
    weights: Array
    scores: Array
    """``[heads, queries, keys]`` fp32."""


@dataclass(frozen=True)
class View:
    """What of a model's attention is shown."""

    kind: str
    layer: int
    head: int | None
    """One head, or None for all."""

    @classmethod
    def of(cls, model: ModelConfig, kind: str, layer: int | None, head: int | None) -> "View":
        """The view of ``layer``, the last unless given; Invalid when ``model`` has no such layer or head."""
        layers = model.encoder_layers if kind == "encoder" else model.decoder_layers
        layer = layers - 1 if layer is None else layer
        if layer >= layers:
            raise Invalid([("layer", f"is {layer}; {kind} attention has layers 0 to {layers - 1}")])
        if head is not None and head >= model.heads:
            raise Invalid([("head", f"is {head}; there are heads 0 to {model.heads - 1}")])
        return cls(kind, layer, head)

    def attention(self, arrays: Mapping[str, Array], source: Sequence[str], target: Sequence[str]) -> Attention:
        """This part of all ``arrays`` of a ``source`` and a ``target``, both given as pieces."""
        queries = source if self.kind == "encoder" else target
        keys = target if self.kind == "decoder" else source
        heads = slice(None) if self.head is None else slice(self.head, self.head + 1)
        name = KINDS[self.kind].format(self.layer)
        weights, scores = arrays[f"{name}.weights"][heads], arrays[f"{name}.scores"][heads]
        return Attention(self.kind, self.layer, list(queries), list(keys), weights, scores)
