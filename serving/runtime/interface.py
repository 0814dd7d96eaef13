"""The seam between the engine and whatever computes: a runtime, and the decoder batch behind it.

The engine says which hypotheses there are and which token each goes on with. Where keys and values lie, how rows are
packed, which device computes a step and with how many threads: all that is the batch's own business.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from export.bundle import Manifest
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, StepResult

Array = NDArray[Any]


class DecoderBatch(Protocol):
    """Everybody's hypotheses, decoded side by side. Not for use from several threads at a time, but for `len`."""

    rows: int
    """Slots at most: each takes a row of a step."""

    def __len__(self) -> int:
        """Slots in use."""

    def admit(self, encoded: EncodedBatch, index: int, length: int, limit: int) -> Slot:
        """A slot for the translation of the source at ``index`` of ``encoded``, which has ``length`` tokens.

        With a ``limit`` it is greedy: it goes on by itself until the end token, or for so many tokens. With 0 each
        step's `Continuation` says how it goes on.
        """

    def step(self, asks: Sequence[Ask]) -> StepResult:
        """Take one step in every slot, of which there is one at least. The result, valid until the next, answers
        ``asks``.

        Slots that end stay until they are released. After an exception nothing is known of the batch.
        """

    def reorder(self, continuations: Sequence[Continuation]) -> list[list[Slot]]:
        """Let the hypotheses of searches fork, go on and end; returns the slots of each, in its order."""

    def release(self, slots: Sequence[Slot]) -> None:
        """Free ``slots``. Never fails."""

    def tidy(self) -> bool:
        """Give some memory back that nobody needs, for as long as others can wait; whether there was any."""


class EncoderCost(NamedTuple):
    """What the encoder's time goes to, for whoever decides which sources it is given together."""

    lanes: int
    """Batches that it works on side by side."""
    batch_tokens: int
    """Source tokens of a batch at most, unless it is a single source."""
    batch_positions: int
    """The same with padding."""
    run_tokens: int
    """Source tokens that take about as long as one more run."""
    token_pairs: int
    """Pairs of a query and a key that take about as long as a source token; only attention is padded."""


class Runtime(Protocol):
    """A bundle's graphs on one device. Not for use from several threads at a time."""

    manifest: Manifest
    encoder_cost: EncoderCost

    def batch(self, rows: int) -> DecoderBatch:
        """A decoder batch of at most ``rows`` slots."""

    def encode(self, batches: Sequence[list[list[int]]]) -> Iterator[EncodedBatch | Exception]:
        """Each of ``batches`` of sources through the encoder, in order. One that fails gives its exception."""

    def pool(self, encoded: EncodedBatch, index: int, length: int) -> Array:
        """The vector ``[width]`` fp32, of length 1, of one source; where the manifest has a pooling."""

    def attention(self, source: list[int], target: list[int]) -> Mapping[str, Array]:
        """Weights and scores of one pair by name, such as ``decoder.1.cross.weights`` ``[heads, target, source]``."""
