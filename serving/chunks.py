"""Which sentences go through the encoder together: plain Python over plain data."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from serving.scheduler import Ticket

T = TypeVar("T", bound=Ticket)

ENCODE_CHUNK = 256
"""Source tokens that go through the encoder together. More make no product faster, but push the states that pass
between its layers out of the processor's nearer caches."""
RUN_TOKENS = 8
"""Source tokens that take the encoder about as long as one more run: no more padding than that saves one."""
ATTENTION_POSITIONS = 300
"""Pairs of a query and a key that take the encoder about as long as a token; only attention is padded."""


def chunks(jobs: Sequence[T], lanes: int) -> Iterator[list[T]]:
    """``jobs`` by length, so that attention pads little, in parts of `ENCODE_CHUNK` tokens at most or one job.

    Few jobs are parted so that each of ``lanes`` has some.
    """
    longest = max((job.source_tokens for job in jobs), default=0)
    limit = min(ENCODE_CHUNK, sum(job.source_tokens for job in jobs) // lanes + longest - 1)
    chunk: list[T] = []
    tokens = pairs = 0
    for job in sorted(jobs, key=lambda job: job.source_tokens):
        length = job.source_tokens
        padding = (len(chunk) * length**2 - pairs) / ATTENTION_POSITIONS
        if chunk and (padding > RUN_TOKENS or tokens + length > limit):
            yield chunk
            chunk, tokens, pairs = [], 0, 0
        chunk.append(job)
        tokens += length
        pairs += length**2
    if chunk:
        yield chunk
