"""What the parity gate says of a bundle, as it stands in the manifest."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(Frozen):
    """One batch: ONNX Runtime against PyTorch, in fp16 that of fp32, else that of the same precision."""

    rows: int
    lengths: tuple[int, int]
    """Shortest and longest source."""
    steps: int
    tokens: int
    tokens_equal: int
    """Of ``tokens``, teacher-forced, those where both like the same token best."""
    near_ties: int | None = None
    """Of ``tokens``, those where PyTorch's best two lie within `ParityReport.near_tie`; None where none is exempt."""
    tokens_exempt: int | None = None
    """Of those that are not equal, the ones where another token of a near-tie is liked best; None as above."""
    log_probability_error: float
    """The largest difference over the whole vocabulary at every step."""


class ParityCase(Case):
    """A batch of real sentences, along PyTorch's greedy output."""

    memory_error: float
    attention_error: float
    """The largest difference of any weight of any head."""


class LongBounds(Frozen):
    """The most that a `LongCase` may have of each; ``equal_share`` the least share of equal and exempt tokens."""

    log_probability_error: float
    typical_error: float
    best_error: float | None = None
    cache_error: float
    typical_cache_error: float
    memory_error: float
    source_cache_error: float
    equal_share: float


class LongCase(Case):
    """Sequences at the model's limits: `export.long_sequences`."""

    typical_error: float
    """Of each token's largest difference of a log-probability the median."""
    best_error: float | None = None
    """The median of the difference at the token that PyTorch likes best; None in bundles written before."""
    cache_error: float
    """The largest difference of a number of a key or value that a step writes; in int8 one is a unit of the cache."""
    typical_cache_error: float
    """Of each token's largest such difference the median."""
    memory_error: float
    """Of a token's memory, how far it is from PyTorch's over the latter's length: the largest of all tokens."""
    source_cache_error: float
    """The same of the keys and values that encoder-decoder attention reads, of all layers."""


class ParityReport(Frozen):
    """What the gate measured and the bounds it applied."""

    passed: bool
    reference: str
    cases: tuple[ParityCase, ...]
    long: LongCase | None = None
    """None in bundles written before, as are its bounds."""
    long_bounds: LongBounds | None = None
    log_probability_bound: float
    state_bound: float | None = None
    """For the errors of the memory and of the attention weights; `log_probability_bound` in bundles written before."""
    typical_error: float | None = None
    """The median, over tokens, of the largest difference over the whole vocabulary; bundles written before lack it."""
    typical_bound: float | None = None
    best_error: float | None = None
    """Over tokens, the median of the difference at the one that PyTorch likes best; None in bundles written before."""
    best_bound: float | None = None
    near_tie: float | None = None
    """In nats: how near PyTorch's best two tokens lie at a near-tie. Only fp16 exempts them; None elsewhere."""
    near_ties: int | None = None
    """Tokens at near-ties, in all batches and `long`; None as `near_tie`."""
    tokens_differing: int | None = None
    """Tokens, of all those, at which another one is liked best; None as `near_tie`."""
    equal_share: float
    """Of all tokens in the batches, those that are equal or exempt."""
    equal_share_bound: float
    vector_error: float | None = None
    """The largest difference of any number of any sentence vector, from the same memory; None without a pooling."""
    fp32_agreement: float
    """Share of steps at which the unquantised model likes the same token best."""
    fp32_agreement_floor: float
