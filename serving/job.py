"""A job: one sentence's way through the engine, and what it ends in."""

import time
from asyncio import AbstractEventLoop
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from serving.decoding import Decoding
from serving.scheduler import Ticket
from serving.search import Hypothesis, Search, search_for

Array = NDArray[Any]


class Listener(Protocol):
    """Whoever wants a translation's tokens before it is done."""

    loop: AbstractEventLoop
    """Where `hear` is called, once a step for all listeners of that loop."""

    def hear(self, token: int) -> None:
        """Take the next token."""


@dataclass(frozen=True)
class Timings:
    """Seconds a job spent in each stage of the engine."""

    queue: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Translated:
    """One sentence's translations."""

    hypotheses: list[Hypothesis]
    """Best first."""
    timings: Timings


@dataclass(frozen=True)
class Encoded:
    """Vectors of one text."""

    vectors: Array
    """``[tokens, width]`` fp32, the encoder's output; ``[1, width]`` when they were pooled."""
    timings: Timings


@dataclass(frozen=True)
class Attended:
    """Attention of one pair of token sequences."""

    arrays: dict[str, Array]
    """By name, such as ``decoder.1.cross.weights`` ``[heads, target, source]``."""
    timings: Timings


@dataclass(eq=False)
class Job(Ticket):
    """One sentence's way through the engine."""

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    """What an attention job inspects, start token included."""
    pooled: bool = False
    """Whether an encoding's vectors become one, by the bundle's own pooling."""
    search: Search | None = None
    """A translation's hypotheses."""
    listener: Listener | None = None
    """Hears a translation's tokens as they become final, one a call; not with a beam."""
    future: "Future[Any]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    encoded: float = 0.0

    @property
    def asked(self) -> bool:
        """Whether its search has a say in every step, or somebody hears of it; else `serving.greedy` does it all."""
        return self.search is not None and (self.listener is not None or not self.search.plain)

    def timings(self) -> Timings:
        """Stages as of now."""
        return Timings(self.admitted - self.arrived, self.encoded - self.admitted, time.monotonic() - self.encoded)


def translation(source: list[int], decoding: Decoding, deadline: float, listener: Listener | None = None) -> Job:
    """A job that ends in `Translated` by ``deadline`` (``time.monotonic``); ValueError for a listener with a beam."""
    if listener and decoding.beam_size > 1:
        raise ValueError("no token of a beam is final before the last: nobody can listen to it")
    given = len(decoding.prefix)
    expected = max(decoding.min_tokens, given + min(max(0, decoding.max_tokens - given), 2 * len(source)))
    rows = decoding.beam_size
    cost = len(source) + rows * expected
    search = search_for(decoding)
    return Job(cost, len(source), rows, deadline, source=source, search=search, listener=listener)


def encoding(source: list[int], deadline: float, pooled: bool = False) -> Job:
    """A job that ends in `Encoded`."""
    return Job(len(source), len(source), 0, deadline, source=source, pooled=pooled)


def inspection(source: list[int], target: list[int], deadline: float) -> Job:
    """A job that ends in `Attended`."""
    cost = len(source) + len(target)
    return Job(cost, cost, 0, deadline, source=source, target=target)
