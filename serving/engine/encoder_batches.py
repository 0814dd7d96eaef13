"""Which sentences go through the encoder together: plain Python over plain data."""

from collections.abc import Sequence
from typing import TypeVar

from serving.engine.scheduler import Ticket
from serving.runtime.interface import EncoderCost

T = TypeVar("T", bound=Ticket)


def encoder_batches(jobs: Sequence[T], cost: EncoderCost) -> list[list[T]]:
    """``jobs`` by length, in batches that are padded by no more than one more run would take.

    Few jobs are parted so that each of the lanes has some.
    """
    longest = max((job.source_tokens for job in jobs), default=0)
    limit = min(cost.batch_tokens, sum(job.source_tokens for job in jobs) // cost.lanes + longest - 1)
    batches: list[list[T]] = []
    batch: list[T] = []
    tokens = pairs = 0
    for job in sorted(jobs, key=lambda job: job.source_tokens):
        length = job.source_tokens
        padding = (len(batch) * length**2 - pairs) / cost.token_pairs
        full = tokens + length > limit or (len(batch) + 1) * length > cost.batch_positions
        if not batch or padding > cost.run_tokens or full:
            batches.append(batch := [])
            tokens = pairs = 0
        batch.append(job)
        tokens += length
        pairs += length**2
    return batches
