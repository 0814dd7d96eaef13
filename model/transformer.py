"""The Transformer: an encoder that reads the source, a decoder that writes the target."""

import math
from typing import NamedTuple

from torch import Tensor, arange, nn

from model.attention import Attended, padding_visibility
from model.config import ModelConfig
from model.layers import DecoderLayer, EncoderLayer, sinusoidal_positions


class Encoded(NamedTuple):
    """The encoder's output."""

    memory: Tensor
    """``[batch, source, width]``: one vector a source token; what the decoder attends to."""
    visible: Tensor
    """``[batch, 1, 1, source]`` boolean: True on tokens, False on padding."""
    attention: list[Attended]
    """Self-attention, a layer each."""


class Decoded(NamedTuple):
    """The decoder's output, teacher-forced."""

    states: Tensor
    """``[batch, target, width]``: the last layer's states, normed, before the output projection."""
    self_attention: list[Attended]
    cross_attention: list[Attended]


class Transformer(nn.Module):
    """An encoder-decoder Transformer over whole sequences ("Attention Is All You Need").

    Token ids are int64. Sequences in a batch are padded at the end to one length; what the padding holds changes
    nothing for the tokens before it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.vocabulary, config.width)
        self.target_embedding = self.source_embedding
        self.projection = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied_embeddings:
            self.projection.weight = self.source_embedding.weight
        else:
            self.target_embedding = nn.Embedding(config.vocabulary, config.width)
            nn.init.xavier_uniform_(self.projection.weight)
        for embedding in dict.fromkeys((self.source_embedding, self.target_embedding)):
            # Embeddings are multiplied by √width (section 3.4), so these start with unit variance after it.
            nn.init.normal_(embedding.weight, std=config.width**-0.5)
        if config.positions == "learned":
            self.source_positions = nn.Parameter(sinusoidal_positions(config.max_positions, config.width))
            self.target_positions = nn.Parameter(sinusoidal_positions(config.max_positions, config.width))
        else:
            table = sinusoidal_positions(config.max_positions, config.width)
            self.register_buffer("source_positions", table, persistent=False)
            self.register_buffer("target_positions", table, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        # Pre-norm layers leave their sum unnormed, so one norm closes each stack; post-norm layers end in their own.
        pre = config.norm == "pre"
        self.encoder_norm = nn.LayerNorm(config.width) if pre else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.width) if pre else nn.Identity()

    def _embed(self, ids: Tensor, embedding: nn.Embedding, positions: Tensor) -> Tensor:
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(f"{ids.shape[1]} tokens are more than this model's {self.config.max_positions} positions")
        return self.dropout(embedding(ids) * math.sqrt(self.config.width) + positions[: ids.shape[1]])

    def encode(self, source: Tensor, lengths: Tensor) -> Encoded:
        """Read ``source`` ``[batch, length]`` whose rows hold ``lengths`` ``[batch]`` tokens each (at least 1)."""
        visible = padding_visibility(lengths, source.shape[1])
        states = self._embed(source, self.source_embedding, self.source_positions)
        attention = []
        for layer in self.encoder:
            states, attended = layer(states, visible)
            attention.append(attended)
        return Encoded(self.encoder_norm(states), visible, attention)

    def decode(self, target: Tensor, encoded: Encoded) -> Decoded:
        """Read ``target`` ``[batch, length]``, a start token first; position i's states predict token i + 1."""
        states = self._embed(target, self.target_embedding, self.target_positions)
        attention_self, attention_cross = [], []
        for layer in self.decoder:
            states, attended_self, attended_cross = layer(states, encoded.memory, encoded.visible)
            attention_self.append(attended_self)
            attention_cross.append(attended_cross)
        return Decoded(self.decoder_norm(states), attention_self, attention_cross)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits ``[batch, target, vocabulary]``, teacher-forced."""
        return self.projection(self.decode(target, self.encode(source, lengths)).states)

    def sentence_vectors(self, source: Tensor, lengths: Tensor) -> Tensor:
        """``[batch, width]``: the mean of the memory over each row's tokens, scaled to length 1."""
        encoded = self.encode(source, lengths)
        inside = (arange(source.shape[1], device=source.device) < lengths[:, None]).to(encoded.memory.dtype)
        mean = (encoded.memory * inside[..., None]).sum(1) / lengths[:, None]
        return nn.functional.normalize(mean, dim=-1)
