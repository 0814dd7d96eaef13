"""What a Transformer is made of: the numbers that decide its shape."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class ModelConfig(BaseModel):
    """The shape of one encoder-decoder Transformer; frozen, and unknown keys are refused.

    Names follow "Attention Is All You Need" (Vaswani et al., 2017), section 3, in words: ``width`` is its d_model,
    ``feed_forward`` its d_ff, ``heads`` its h. The defaults are the paper's base model with 37,000 shared pieces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Positive = 37_000
    width: Positive = 512
    heads: Positive = 8
    feed_forward: Positive = 2048
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    norm: Literal["pre", "post"] = "post"
    """Where LayerNorm stands: "post" after each residual sum (the paper), "pre" before each sub-layer."""
    activation: Literal["relu", "gelu"] = "relu"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    tied_embeddings: bool = True
    """One matrix for source embedding, target embedding and output projection (section 3.4)."""
    max_positions: Positive = 256
    """The longest source or target in tokens, special ones included."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.max_positions % 8:
            # The runtime pads sources to multiples of 8, and the padding needs positions too.
            raise ValueError(f"max_positions {self.max_positions} is not a multiple of 8")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd: sinusoidal positions come in pairs of sine and cosine")
        return self

    @property
    def head_width(self) -> int:
        """Width of one head's queries, keys and values: the paper's d_k = d_v."""
        return self.width // self.heads

    def default_limit(self, source_tokens: int) -> int:
        """The most target tokens a search writes unless told otherwise: twice the source and ten, within the model."""
        return min(self.max_positions, 2 * source_tokens + 10)
