"""A job: one sentence's way through the engine, and what it ends in."""

import contextlib
import logging
import time
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from export.bundle import Manifest
from serving.decoding import Decoding
from serving.errors import DeadlineExceeded, ServiceError
from serving.scheduler import Ticket
from serving.search import Hypothesis, Search, search_for

Array = NDArray[Any]
logger = logging.getLogger(__name__)


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

    def misfit(self, manifest: Manifest) -> str | None:
        """What of it the model of ``manifest`` cannot work on, for which the graphs would fail; None when it can."""
        limits, vocabulary = manifest.limits, manifest.model.vocabulary
        prefix = self.search.decoding.prefix if self.search else ()
        for part, ids, most in (
            ("source", self.source, limits.source_tokens),
            ("target", self.target, limits.target_tokens),
            ("prefix", prefix, limits.target_tokens - 1),
        ):
            if len(ids) > most:
                return f"its {part} has {len(ids)} tokens; the model takes {most}"
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                return f"its {part} has tokens that are none of the model's {vocabulary}"
        if not self.source:
            return "its source has no tokens"
        if self.search and not 0 < (asked := self.search.decoding.max_tokens) <= limits.target_tokens:
            return f"it may write {asked} tokens; the model writes 1 to {limits.target_tokens}"
        return None

    def deliver(self, result: Translated | Encoded | Attended) -> None:
        """End with ``result``."""
        # A client may cancel the future from its own thread at any moment; from here on it no longer can.
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)

    def fail(self, error: ServiceError) -> None:
        """End with ``error``, unless it has ended."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def give_up(self) -> None:
        """End because nobody waits for it any more."""
        if self.cancelled and self.future.cancel():
            self.future.set_running_or_notify_cancel()
        else:
            self.fail(DeadlineExceeded(self.deadline - self.arrived))


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


def tell(heard: Mapping[AbstractEventLoop, Sequence[tuple[Listener, int]]]) -> None:
    """Give every listener its token, waking each event loop once."""

    def each(news: Sequence[tuple[Listener, int]]) -> None:
        for listener, token in news:
            try:
                listener.hear(token)
            except Exception:  # the others' tokens must not be lost with it
                logger.exception("a listener failed")

    for loop, news in heard.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(each, news)
