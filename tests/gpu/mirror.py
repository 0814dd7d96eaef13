"""A device and the fp32 reference, step by step: the device decides, and every number it decides by is compared.

Two beam searches that part at a near-tie may end far from each other, so their ends say little. Here the reference
follows the device's hypotheses, whatever they are. Each step then shows whether what the device's search chose from is
what fp32 finds for the same hypotheses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from export.bundle import Manifest
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import DecoderBatch, Runtime
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, Candidates, StepResult

WIDER = 2
"""So many times as many tokens are asked of the reference, so that those that the device likes are among them."""


@dataclass
class Comparison:
    """What was compared."""

    bound: float
    """Nats that a log-probability may differ by."""
    decisions: int = 0
    """Hypotheses at all steps."""
    outside: int = 0
    """Of these, those where a token's log-probability differed by more than the bound."""
    largest: float = 0.0
    """The largest difference, in nats."""

    def compare(self, found: Candidates, expected: Candidates, k: int) -> None:
        """Take note of what a device ``found`` and the reference ``expected`` for the ``k`` likeliest tokens."""
        known = dict(zip(expected.tokens, expected.log_probabilities, strict=True))
        least = expected.log_probabilities[-1]
        difference = 0.0
        for token, likely in zip(found.tokens[:k], found.log_probabilities[:k], strict=True):
            # Of a token that the reference does not name it is known that it is no likelier than the last it names.
            error = abs(likely - known[token]) if token in known else max(likely - least, 0.0)
            difference = error if not error <= difference else difference  # NaN stays
        # What the reference likes, the device must have found, or something as likely.
        missed = set(expected.tokens[:k]) - set(found.tokens)
        behind = max((known[token] - found.log_probabilities[k - 1] for token in missed), default=0.0)
        difference = behind if behind > difference else difference
        self.decisions += 1
        self.outside += not difference <= self.bound
        self.largest = difference if not difference <= self.largest else self.largest


@dataclass(frozen=True)
class MirroredEncodedBatch:
    """One batch through both encoders."""

    device: EncodedBatch
    reference: EncodedBatch

    @property
    def positions(self) -> int:
        """See `EncodedBatch`."""
        return self.device.positions

    def memory(self, index: int, length: int) -> Any:
        """See `EncodedBatch`."""
        return self.device.memory(index, length)


class MirroredBatch:
    """`DecoderBatch` on the device and on the reference."""

    def __init__(self, device: DecoderBatch, reference: DecoderBatch, comparison: Comparison) -> None:
        self.rows = device.rows
        self._device, self._reference, self._comparison = device, reference, comparison
        self._slots: dict[Slot, Slot] = {}
        """The reference's by the device's."""

    def __len__(self) -> int:
        return len(self._device)

    def admit(self, encoded: EncodedBatch, index: int, length: int, limit: int) -> Slot:
        """See `DecoderBatch`; a greedy slot would go on by itself, so there are none."""
        assert isinstance(encoded, MirroredEncodedBatch)
        assert not limit
        slot = self._device.admit(encoded.device, index, length, 0)
        self._slots[slot] = self._reference.admit(encoded.reference, index, length, 0)
        return slot

    def step(self, asks: Sequence[Ask]) -> StepResult:
        """See `DecoderBatch`."""
        found = self._device.step(asks)
        wider = [Ask(self._slots[slot], WIDER * k, given) for slot, k, given in asks]
        expected = self._reference.step(wider)
        for ask, wide in zip(asks, wider, strict=True):
            self._comparison.compare(found.candidates(ask), expected.candidates(wide), ask.k)
        return found

    def reorder(self, continuations: Sequence[Continuation]) -> list[list[Slot]]:
        """See `DecoderBatch`."""
        mirrored = [
            Continuation([self._slots[slot] for slot in slots], parents, tokens)
            for slots, parents, tokens in continuations
        ]
        following = self._device.reorder(continuations)
        for slots, others in zip(following, self._reference.reorder(mirrored), strict=True):
            self._slots.update(zip(slots, others, strict=True))
        return following

    def release(self, slots: Sequence[Slot]) -> None:
        """See `DecoderBatch`."""
        self._reference.release([self._slots.pop(slot) for slot in slots])
        self._device.release(slots)

    def tidy(self) -> bool:
        """See `DecoderBatch`."""
        return self._device.tidy() | self._reference.tidy()


class MirroredRuntime:
    """`Runtime` on the device and on the reference."""

    def __init__(self, device: Runtime, reference: Runtime, comparison: Comparison) -> None:
        self._device, self._reference, self._comparison = device, reference, comparison
        self.encoder_cost = device.encoder_cost._replace(lanes=1)

    @property
    def manifest(self) -> Manifest:
        """The device's."""
        return self._device.manifest

    def batch(self, rows: int) -> MirroredBatch:
        """See `Runtime`."""
        return MirroredBatch(self._device.batch(rows), self._reference.batch(rows), self._comparison)

    def encode(self, batches: Sequence[list[list[int]]]) -> Iterator[MirroredEncodedBatch]:
        """See `Runtime`."""
        both = zip(self._device.encode(batches), self._reference.encode(batches), strict=True)
        for found, expected in both:
            for each in (found, expected):
                if isinstance(each, Exception):
                    raise each
            yield MirroredEncodedBatch(found, expected)  # type: ignore[arg-type]

    def pool(self, encoded: EncodedBatch, index: int, length: int) -> Any:
        """See `Runtime`."""
        raise NotImplementedError("translations only are mirrored")

    def attention(self, source: list[int], target: list[int]) -> Any:
        """See `Runtime`."""
        raise NotImplementedError("translations only are mirrored")
