"""The decoder batch against searches that each have a list of their own.

The decoder stands in: what it finds for a row is a function of the source and of all tokens that the row's memory holds,
so whatever lands in a wrong row, or is lost, changes what is found next.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.tokenizer import END, START
from serving.runtime.batch import SHARED_K, CacheCopy, RowBatch
from serving.runtime.row_state import RowState
from serving.runtime.rows import Continuation, Slot
from serving.runtime.step_result import Ask, Candidates, StepArrays

ROWS, POSITIONS, VOCABULARY = 12, 12, 60


def log_softmax(source: int, tokens: Sequence[int]) -> Any:
    """What comes after ``tokens``; the end token is likely at times."""
    seed = hashlib.sha256(repr((source, list(tokens))).encode()).digest()
    scores = np.random.default_rng(int.from_bytes(seed[:8])).normal(size=VOCABULARY)
    return (scores - np.log(np.exp(scores).sum())).astype(np.float32)


@dataclass
class Source:
    """Stands in for what an encoder gives."""

    number: int
    positions: int = 8
    caches: dict[str, Any] = field(default_factory=dict)

    def memory(self, index: int, length: int) -> Any:
        raise NotImplementedError


class Lists:
    """A memory and a decoder in plain lists: what the graph would read and write."""

    gives_log_softmax = True

    def __init__(self, state: RowState, packed: bool = True) -> None:
        self.state, self.packed = state, packed
        self.sources: list[int | None] = [None] * ROWS
        self.targets: list[list[int]] = [[] for _ in range(ROWS)]
        self.given_back: list[int] = []
        self.asked: list[tuple[int, int, bool]] = []

    def store(self, row: int, encoded: Any, index: int, length: int) -> None:
        if encoded.number < 0:
            raise ValueError("cannot be stored")
        self.sources[row] = encoded.number

    def forget(self, row: int) -> None:
        assert row >= 0

    def copy(self, copies: Sequence[CacheCopy]) -> None:
        for origin, row, written, read in copies:
            self.targets[row][:written] = self.targets[origin][:written]
            if read:
                self.sources[row] = self.sources[origin]

    def written(self, positions: Any) -> None:
        assert positions.tolist() == [position + 1 for position in self.state.position[: len(positions)].tolist()]

    def deep(self) -> list[int]:
        return [row for row in range(ROWS) if self.targets[row]]

    def give_back(self, rows: Sequence[int]) -> None:
        for row in rows[:2]:
            self.targets[row], self.sources[row] = [], None

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        self.asked.append((rows, k, whole))
        every = np.zeros((rows, VOCABULARY), np.float32)
        for row in range(rows):
            position = int(self.state.position[row])
            self.targets[row][position:] = [int(self.state.token[row])]
            source = self.sources[row]
            if self.state.lengths[row] == 1:  # a row that nobody uses
                assert not self.packed
                assert self.targets[row] == [START]
                continue
            assert source is not None
            every[row] = log_softmax(source, self.targets[row])
        tokens = np.argsort(-every, axis=1, kind="stable")[:, :k]
        given = every[np.arange(rows), self.state.given[:rows]]
        return StepArrays(tokens, np.take_along_axis(every, tokens, 1), given, every if whole else None)


def batch_of(packed: bool = True) -> tuple[RowBatch, Lists]:
    state = RowState(ROWS, POSITIONS)
    lists = Lists(state, packed)
    return RowBatch(state, lists, lists, VOCABULARY), lists


@dataclass(eq=False)
class Search:
    """Hypotheses and their slots; greedy with a ``limit``."""

    source: int
    size: int
    limit: int
    slots: list[Slot]
    written: list[list[int]] = field(default_factory=lambda: [[START]])


class Turns(RuleBasedStateMachine):
    """What an engine does with a batch, in any order."""

    @initialize(packed=st.booleans())
    def begin(self, packed: bool) -> None:
        self.batch, self.lists = batch_of(packed)
        self.searches: list[Search] = []
        self.sources = 0

    @rule(size=st.integers(1, 4), limit=st.sampled_from([0, 0, 1, 3, POSITIONS]))
    def admit(self, size: int, limit: int) -> None:
        size = 1 if limit else size
        if sum(search.size for search in self.searches) + size <= ROWS:
            self.sources += 1
            slot = self.batch.admit(Source(self.sources), 0, 3, limit)
            self.searches.append(Search(self.sources, size, limit, [slot]))

    @rule()
    def a_source_that_cannot_be_stored_leaves_no_trace(self) -> None:
        if sum(search.size for search in self.searches) < ROWS:
            used = len(self.batch)
            with pytest.raises(ValueError, match="cannot be stored"):
                self.batch.admit(Source(-1), 0, 3, 0)
            assert len(self.batch) == used

    @precondition(lambda self: self.searches)
    @rule(data=st.data())
    def step(self, data: Any) -> None:
        searching = [search for search in self.searches if not search.limit]
        wanted = {search: data.draw(st.sampled_from([1, 2, 5, 8, SHARED_K + 9])) for search in searching}
        given = {search: data.draw(st.none() | st.integers(0, VOCABULARY - 1)) for search in searching}
        asks = {search: [Ask(slot, wanted[search], given[search]) for slot in search.slots] for search in searching}
        step = self.batch.step([ask for asked in asks.values() for ask in asked])
        _, k, _ = self.lists.asked[-1]
        assert k <= max([2, *(few for few in wanted.values() if few <= SHARED_K)])
        ended = {written.slot: written for written in step.ended}
        for search in [search for search in self.searches if search.limit]:
            [tokens], [slot] = search.written, search.slots
            likely = log_softmax(search.source, tokens)
            tokens.append(int(likely.argmax()))
            over = tokens[-1] == END or len(tokens) - 1 == search.limit
            assert over == (slot in ended)
            if over:
                assert ended[slot].tokens == tokens[1:]
                assert ended[slot].log_probabilities[-1] == likely.max()
                self.leave(search)
        continuations, following = [], []
        for search, asked in asks.items():
            for ask, tokens in zip(asked, search.written, strict=True):
                self.check(step.candidates(ask), ask, log_softmax(search.source, tokens))
            count = data.draw(st.integers(0, search.size))
            parents = [data.draw(st.integers(0, len(asked) - 1)) for _ in range(count)]
            if not count or len(search.written[0]) == POSITIONS:
                self.leave(search)
                continue
            tokens = [data.draw(st.integers(0, VOCABULARY - 1)) for _ in parents]
            continuations.append(Continuation(search.slots, parents, tokens))
            following.append(search)
            search.written = [[*search.written[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        for search, slots in zip(following, self.batch.reorder(continuations), strict=True):
            search.slots = slots

    def check(self, candidates: Candidates, ask: Ask, likely: Any) -> None:
        assert len(candidates.tokens) == min(ask.k, VOCABULARY)
        best = np.argsort(-likely, kind="stable")[: len(candidates.tokens)]
        assert candidates.tokens == best.tolist()
        assert candidates.log_probabilities == likely[best].tolist()
        if ask.given is not None:
            assert candidates.given == likely[ask.given]

    @precondition(lambda self: self.searches)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        for search in data.draw(st.lists(st.sampled_from(self.searches), unique=True, max_size=3)):
            self.leave(search)

    @rule()
    def tidy(self) -> None:
        self.batch.tidy()

    def leave(self, search: Search) -> None:
        self.batch.release(search.slots)
        self.searches.remove(search)

    @invariant()
    def slots_are_counted(self) -> None:
        assert len(self.batch) == sum(len(search.slots) for search in self.searches)


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40)


def test_tidying_ends_when_no_slot_is_left_that_holds_memory() -> None:
    batch, lists = batch_of()
    slots = [batch.admit(Source(number), 0, 3, 0) for number in range(1, 6)]
    batch.step([Ask(slot, 2) for slot in slots])
    assert not batch.tidy(), "all are in use"
    batch.release(slots[:4])
    assert [batch.tidy() for _ in range(3)] == [True, True, False]
    assert lists.deep() == [4]


def test_a_bundle_without_log_softmax_finds_as_many_tokens_for_all() -> None:
    batch, lists = batch_of()
    lists.gives_log_softmax = False
    slots = [batch.admit(Source(number), 0, 3, 0) for number in (1, 2)]
    step = batch.step([Ask(slots[0], 2), Ask(slots[1], 50)])
    assert lists.asked == [(2, 50, False)]
    assert len(step.candidates(Ask(slots[1], 50)).tokens) == 50
