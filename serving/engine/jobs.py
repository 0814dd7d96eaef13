"""Jobs: one sentence's way through the engine, of three kinds, and what each ends in."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from export.bundle import Manifest
from serving.engine.decoding import Decoding
from serving.engine.listeners import Listener
from serving.engine.results import Attended, Encoded, Timings, Translated
from serving.engine.scheduler import Ticket, translation_cost
from serving.engine.search import Search, Single, search_for
from serving.errors import DeadlineExceeded, ServiceError
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import DecoderBatch, Runtime
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, StepResult, Written


@dataclass(eq=False, kw_only=True)
class Job(Ticket):
    """One sentence's way through the engine."""

    source: list[int]
    future: "Future[Any]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    encoded: float = 0.0

    def timings(self) -> Timings:
        """Stages as of now."""
        return Timings(self.admitted - self.arrived, self.encoded - self.admitted, time.monotonic() - self.encoded)

    def misfit(self, manifest: Manifest) -> str | None:
        """What of it the model of ``manifest`` cannot work on, for which the graphs would fail; None when it can."""
        if not self.source:
            return "its source has no tokens"
        return _misfit("source", self.source, manifest.limits.source_tokens, manifest)

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


@dataclass(eq=False, kw_only=True)
class TranslationJob(Job):
    """Ends in `Translated`."""

    search: Search
    listener: Listener | None = None
    """Takes the tokens as they become final, one a call; not with a beam."""
    slots: list[Slot] = field(default_factory=list)
    """Its places in the decoder batch, one a hypothesis, in the search's order."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token always comes next and nobody listens: the decoder batch then does it all."""
        return self.search.plain and self.listener is None

    @property
    def limit(self) -> int:
        """The tokens that the decoder batch is to write by itself."""
        return self.search.decoding.max_tokens if self.greedy else 0

    def misfit(self, manifest: Manifest) -> str | None:
        """See `Job.misfit`."""
        decoding, most = self.search.decoding, manifest.limits.target_tokens
        if misfit := super().misfit(manifest) or _misfit("prefix", decoding.prefix, most - 1, manifest):
            return misfit
        if not 0 < decoding.max_tokens <= most:
            return f"it may write {decoding.max_tokens} tokens; the model writes 1 to {most}"
        return None

    def start(self, batch: DecoderBatch, encoded: EncodedBatch, index: int) -> None:
        """Take a slot of ``batch`` for its source, which is at ``index`` of what was ``encoded``."""
        self.slots = [batch.admit(encoded, index, self.source_tokens, self.limit)]

    def ask(self) -> list[Ask]:
        """What its search wants to know of the next step."""
        k, given = self.search.wanted, self.search.given
        return [Ask(slot, k, given) for slot in self.slots]

    def advance(self, step: StepResult, asks: Sequence[Ask]) -> Continuation | None:
        """Let its search choose from what a step found for its ``asks``; None when the search is over."""
        chosen = self.search.advance([step.candidates(ask) for ask in asks])
        if not chosen:
            return None
        return Continuation(self.slots, [parent for parent, _ in chosen], [token for _, token in chosen])

    def take(self, written: Written) -> None:
        """Take what the decoder batch has written by itself."""
        assert isinstance(self.search, Single)
        self.search.finish(written.tokens, written.log_probabilities)

    def finish(self) -> None:
        """End with what its search has found."""
        self.deliver(Translated(self.search.hypotheses, self.timings()))


@dataclass(eq=False, kw_only=True)
class EncodingJob(Job):
    """Ends in `Encoded`."""

    pooled: bool
    """Whether the vectors become one, by the bundle's own pooling."""

    def finish(self, runtime: Runtime, encoded: EncodedBatch, index: int) -> None:
        """End with the vectors of its source, which is at ``index`` of what was ``encoded``."""
        where = encoded, index, self.source_tokens
        vectors = runtime.pool(*where)[None] if self.pooled else encoded.memory(index, self.source_tokens).copy()
        self.encoded = time.monotonic()
        self.deliver(Encoded(vectors, self.timings()))


@dataclass(eq=False, kw_only=True)
class AttentionJob(Job):
    """Ends in `Attended`."""

    target: list[int]
    """What the decoder reads, start token included."""

    def finish(self, runtime: Runtime) -> None:
        """End with what attention sees."""
        arrays = runtime.attention(self.source, self.target)
        self.encoded = time.monotonic()
        self.deliver(Attended(arrays, self.timings()))

    def misfit(self, manifest: Manifest) -> str | None:
        """See `Job.misfit`."""
        return super().misfit(manifest) or _misfit("target", self.target, manifest.limits.target_tokens, manifest)


def _misfit(part: str, ids: Sequence[int], most: int, manifest: Manifest) -> str | None:
    vocabulary = manifest.model.vocabulary
    if len(ids) > most:
        return f"its {part} has {len(ids)} tokens; the model takes {most}"
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        return f"its {part} has tokens that are none of the model's {vocabulary}"
    return None


def translation(
    source: list[int], decoding: Decoding, deadline: float, listener: Listener | None = None
) -> TranslationJob:
    """A translation to be done by ``deadline`` (``time.monotonic``); ValueError for a listener with a beam."""
    if listener and decoding.beam_size > 1:
        raise ValueError("no token of a beam is final before the last: nobody can listen to it")
    return TranslationJob(
        cost=translation_cost(len(source), decoding),
        source_tokens=len(source),
        rows=decoding.beam_size,
        deadline=deadline,
        source=source,
        search=search_for(decoding),
        listener=listener,
    )


def encoding(source: list[int], deadline: float, pooled: bool = False) -> EncodingJob:
    """The vectors of a source."""
    tokens = len(source)
    return EncodingJob(cost=tokens, source_tokens=tokens, rows=0, deadline=deadline, source=source, pooled=pooled)


def inspection(source: list[int], target: list[int], deadline: float) -> AttentionJob:
    """The attention of a source and a target."""
    cost = len(source) + len(target)
    return AttentionJob(cost=cost, source_tokens=cost, rows=0, deadline=deadline, source=source, target=target)
