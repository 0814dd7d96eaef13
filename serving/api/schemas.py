"""Bodies of requests and answers of the native dialect."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from export.bundle import Manifest
from serving.options import Strict, TranslateOptions


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("text_type", "Input should be a string or a list of strings")
    return value


Texts = Annotated[
    list[str],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_as_list),
    WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
Language = Annotated[str, Field(min_length=1, max_length=35, examples=["de"])]
ModelName = Annotated[str, Field(min_length=1, max_length=200, examples=["en-de-base"])]


class TranslateRequest(TranslateOptions):
    """What ``POST /v1/translate`` takes."""

    text: Texts = Field(examples=["The file could not be opened."])
    """One text or several."""
    source: Language | None = None
    """Its language; the model's first unless given."""
    target: Language | None = None
    """The language to translate into; the first that can be reached from the source unless given."""
    model: ModelName | None = None
    """The model to ask, of those that ``/v1/models`` lists; one that fits the languages unless given."""
    prefix: Texts | None = None
    """What the translation must begin with, one for each text (blank for none): the translation of its first sentence
    goes on from there. It is cut into tokens as it stands, so it ends best where a word ends."""
    log_probabilities: bool = False
    """Say the log-probability of every token."""
    stream: bool = False
    """Answer with server-sent events: ``delta``, an index and the next part of that text's translation, again and
    again; at the end ``result``, the whole answer with its ``timings``, or ``error``, a problem. Only with a
    ``beam_size`` of 1."""


class AlternativeBody(Strict):
    """One translation of a text."""

    text: str
    score: float
    """Sum of the log-probabilities of its tokens."""
    mean_score: float
    """The score per token."""
    tokens: int
    """Target tokens, end tokens included."""
    finish_reason: Literal["stop", "length"]
    """"length" when a sentence ran into its limit and may be cut short."""
    pieces: list[str] | None = None
    """With ``log_probabilities``: its tokens as the tokenizer writes them; ``</s>`` ends a sentence."""
    log_probabilities: list[float] | None = None
    """The natural logarithm of each token's probability."""


class TranslationBody(AlternativeBody):
    """One translated text."""

    alternatives: list[AlternativeBody] | None = None
    """When more than one was asked for, best first: the first is the translation itself."""


class TranslateResponse(Strict):
    """What ``POST /v1/translate`` answers."""

    model: str
    source: str
    target: str
    seed: int | None = None
    """Of the translations that were drawn."""
    translations: list[TranslationBody]
    """In the order of the request."""


class StreamedDelta(Strict):
    """A ``delta`` event: the parts of a text's translation add up to its text."""

    index: int
    """Which text of the request it belongs to, from 0 on."""
    text: str


class StreamedResult(TranslateResponse):
    """The ``result`` event, the last one."""

    timings: dict[str, float]
    """Milliseconds by stage: what ``Server-Timing`` says of other answers."""


class EncodeRequest(Strict):
    """What ``POST /v1/encode`` takes."""

    text: Texts = Field(examples=["The file could not be opened."])
    """One text or several, each read whole."""
    source: Language | None = None
    """Its language; the model's first unless given."""
    model: ModelName | None = None
    """The model to ask, of those that ``/v1/models`` lists; one that fits the languages unless given."""
    pooling: Literal["attention", "mean", "none"] | None = None
    """"attention": one vector a text, of length 1, near to its translation's, from learned queries that attend to its
    tokens; "mean": one vector a text, the mean over its tokens scaled to length 1; "none": one vector a token. Unless
    given, "attention" where the model has it, else "mean"."""


class EncodingBody(Strict):
    """One encoded text."""

    tokens: list[str]
    """Pieces as the tokenizer writes them, special ones included."""
    vector: list[float] | None = None
    """With "attention" and "mean": ``[width]``."""
    vectors: list[list[float]] | None = None
    """With "none": ``[tokens, width]``."""


class EncodeResponse(Strict):
    """What ``POST /v1/encode`` answers."""

    model: str
    source: str
    pooling: str
    """How the vectors were made."""
    encodings: list[EncodingBody]
    """In the order of the request."""


class AttentionRequest(Strict):
    """What ``POST /v1/attention`` takes."""

    text: str = Field(examples=["The file could not be opened."])
    """The source, read whole."""
    translation: str | None = None
    """Its translation; the model's own unless given."""
    source: Language | None = None
    target: Language | None = None
    model: ModelName | None = None
    """The model to ask, of those that ``/v1/models`` lists; one that fits the languages unless given."""
    kind: Literal["encoder", "decoder", "encoder-decoder"] = "encoder-decoder"
    """Encoder self-attention, masked decoder self-attention, or encoder-decoder attention."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """The last unless given."""
    head: Annotated[int, Field(ge=0)] | None = None
    """All unless given."""


class HeadBody(Strict):
    """One head."""

    head: int
    weights: list[list[float]]
    """``[queries, keys]``: softmax weights; rows sum to one."""
    scores: list[list[float]]
    """``[queries, keys]``: scaled dot products before mask and softmax."""


class AttentionResponse(Strict):
    """What ``POST /v1/attention`` answers."""

    model: str
    source: str
    target: str
    kind: str
    layer: int
    queries: list[str]
    """Tokens that look, a row each. A decoder's query is the token it reads; it predicts the next one."""
    keys: list[str]
    """Tokens that are looked at, a column each."""
    heads: list[HeadBody]


class ModelsResponse(Strict):
    """What ``GET /v1/models`` answers."""

    models: list[Manifest]
    """What is loaded."""


class Status(Strict):
    """What ``GET /healthz`` and ``GET /readyz`` answer."""

    status: Literal["alive", "ready"]


class Problem(BaseModel):
    """What is answered when something goes wrong (RFC 9457); kinds of problems have further members."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    title: str
    """What has happened, in two or three words."""
    status: int
    detail: str
    """What has happened, and often the way out."""
