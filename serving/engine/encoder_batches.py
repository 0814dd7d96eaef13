"""Which sentences go through the encoder together: plain Python over plain data."""

from collections.abc import Sequence
from typing import TypeVar

from serving.engine.scheduler import Ticket

T = TypeVar("T", bound=Ticket)

BATCH_TOKENS = 256
"""Source tokens that go through the encoder together. More make no product faster, but push the states that pass
between its layers out of the processor's nearer caches."""
RUN_TOKENS = 8
"""Source tokens that take the encoder about as long as one more run: no more padding than that saves one."""
ATTENTION_POSITIONS = 300
"""Pairs of a query and a key that take the encoder about as long as a token; only attention is padded."""


def encoder_batches(jobs: Sequence[T], lanes: int) -> list[list[T]]:
    """``jobs`` by length, so that attention pads little, in parts of `BATCH_TOKENS` tokens at most or one job.

    Few jobs are parted so that each of ``lanes`` has some.
    """
    longest = max((job.source_tokens for job in jobs), default=0)
    limit = min(BATCH_TOKENS, sum(job.source_tokens for job in jobs) // lanes + longest - 1)
    batches: list[list[T]] = []
    batch: list[T] = []
    tokens = pairs = 0
    for job in sorted(jobs, key=lambda job: job.source_tokens):
        length = job.source_tokens
        padding = (len(batch) * length**2 - pairs) / ATTENTION_POSITIONS
        if not batch or padding > RUN_TOKENS or tokens + length > limit:
            batches.append(batch := [])
            tokens = pairs = 0
        batch.append(job)
        tokens += length
        pairs += length**2
    return batches
