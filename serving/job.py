"""A job: one sentence's way through the engine, and what it ends in."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from serving.scheduler import Ticket

Array = NDArray[Any]


@dataclass(frozen=True)
class Timings:
    """Seconds a job spent in each stage of the engine."""

    queue: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Translated:
    """Target tokens of one sentence."""

    tokens: list[int]
    """Without start token; ends with the end token when ``finish_reason`` is "stop"."""
    log_probabilities: list[float]
    finish_reason: Literal["stop", "length"]
    timings: Timings


@dataclass(frozen=True)
class Encoded:
    """Vectors of one text."""

    memory: Array
    """``[tokens, width]`` fp32: the encoder's output."""
    timings: Timings


@dataclass(frozen=True)
class Attended:
    """Attention of one pair of token sequences."""

    arrays: dict[str, Array]
    """By name, such as ``decoder.1.cross.weights`` ``[heads, target, source]``."""
    timings: Timings


@dataclass
class Job(Ticket):
    """One sentence's way through the engine."""

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    """What an attention job inspects, start token included."""
    limit: int = 0
    """The most tokens a translation may have."""
    future: "Future[Any]" = field(default_factory=Future)
    written: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    encoded: float = 0.0

    def timings(self) -> Timings:
        """Stages as of now."""
        return Timings(self.admitted - self.arrived, self.encoded - self.admitted, time.monotonic() - self.encoded)


def translation(source: list[int], limit: int, deadline: float) -> Job:
    """A job that ends in `Translated`: at most ``limit`` target tokens, by ``deadline`` (``time.monotonic``)."""
    cost = len(source) + min(limit, 2 * len(source))
    return Job(cost, len(source), True, deadline, source=source, limit=limit)


def encoding(source: list[int], deadline: float) -> Job:
    """A job that ends in `Encoded`."""
    return Job(len(source), len(source), False, deadline, source=source)


def inspection(source: list[int], target: list[int], deadline: float) -> Job:
    """A job that ends in `Attended`."""
    cost = len(source) + len(target)
    return Job(cost, cost, False, deadline, source=source, target=target)
