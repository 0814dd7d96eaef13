"""A larger model that begins with what a smaller one has learnt."""

import torch
from torch import nn

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer

FREE = {"vocabulary", "dropout"}
"""Fields of `ModelConfig` in which the two may differ."""
AT_LEAST = {"encoder_layers", "decoder_layers"}
"""And those that may be more."""
BY_PIECE = {"source_embedding.weight", "target_embedding.weight", "projection.weight"}
"""Parameters with a row a piece."""


def grow(model: Transformer, tokenizer: Tokenizer, start: Checkpoint) -> int:
    """Fill ``model``, freshly made and of pre-norm layers, from ``start``; returns how many pieces both know.

    A piece's embedding is that of the same piece. Layers beyond those of ``start`` come last in their stack and add
    nothing to the states at first: the matrices that end their attention and feed-forward are zero. So with the same
    tokenizer ``model`` computes in the beginning what ``start`` does (after Net2Net, Chen et al., 2016). ValueError
    when their shapes do not allow it.
    """
    _check(model.config, start.model.config)
    learnt = dict(start.model.named_parameters())
    rows = {piece: row for row, piece in enumerate(start.tokenizer)}
    known = [(row, rows[piece]) for row, piece in enumerate(tokenizer) if piece in rows]
    new, old = (torch.tensor(ids) for ids in zip(*known, strict=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in BY_PIECE:
                parameter[new] = learnt[name][old]
            elif name in learnt:
                parameter.copy_(learnt[name])
        for layer in (*model.encoder[len(start.model.encoder) :], *model.decoder[len(start.model.decoder) :]):
            _add_nothing(layer)
    return len(known)


def _check(config: ModelConfig, start: ModelConfig) -> None:
    if config.norm != "pre":
        raise ValueError('only a model with norm "pre" can begin with another: post-norm layers cannot add nothing')
    for name, value in config.model_dump().items():
        known = getattr(start, name)
        if name in AT_LEAST and value < known:
            raise ValueError(f"{name} {value} is less than the {known} of the model to begin with")
        if name not in FREE | AT_LEAST and value != known:
            raise ValueError(f"{name} {value} is not the {known} of the model to begin with")


def _add_nothing(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters():
        if "_attention.output." in name or "feed_forward.outer." in name:
            nn.init.zeros_(parameter)
