"""Rows against a plain list of contents: whatever joins, follows, leaves and moves, each hypothesis finds its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.runtime.rows import Copy, Rows, Slot


@dataclass(eq=False)
class Beam:
    """A search of so many hypotheses at most, what they have written, and their slots."""

    size: int
    source: int = 0
    hypotheses: list[str] = field(default_factory=lambda: [""])
    slots: list[Slot] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        return [slot.row for slot in self.slots]


class Memory:
    """What rows hold: a source and a target each."""

    def __init__(self) -> None:
        self.sources: dict[int, int] = {}
        self.targets: dict[int, str] = {}

    def apply(self, copies: Sequence[Copy]) -> None:
        """Make ``copies``, and check that their order is no matter."""
        written = [copy.row for copy in copies]
        assert len(set(written)) == len(written), "a row is written twice"
        assert not set(written) & {copy.origin for copy in copies}, "a row is read that another copy writes"
        for copy in copies:
            self.targets[copy.row] = self.targets[copy.origin]
            if copy.with_source:
                self.sources[copy.row] = self.sources[copy.origin]


class Steps(RuleBasedStateMachine):
    """An engine's turns: some join, rows are packed, or never are, then in a step some follow, some finish, some are
    cancelled."""

    @initialize(limit=st.integers(1, 14), packed=st.booleans())
    def begin(self, limit: int, packed: bool) -> None:
        self.limit, self.packed = limit, packed
        self.rows = Rows()
        self.memory = Memory()
        self.running: list[Beam] = []
        self.joined = 0

    def fits(self, job: Beam) -> bool:
        return sum(other.size for other in self.running) + job.size <= self.limit

    def check_bounds(self) -> None:
        assert len(self.rows) <= sum(job.size for job in self.running) <= self.limit
        assert len(self.rows) <= len(self.rows.slots) <= self.limit

    @rule(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
    def join(self, sizes: list[int]) -> None:
        for size in sizes:
            self.joined += 1
            job = Beam(size, self.joined)
            if self.fits(job):
                extent, freed = len(self.rows.slots), len(self.rows.slots) - len(self.rows)
                job.slots = [self.rows.place()]
                [row] = job.rows
                assert row < extent if freed else row == extent, "a freed row is filled first"
                assert all(row not in other.rows for other in self.running)
                self.memory.sources[row], self.memory.targets[row] = job.source, ""
                self.running.append(job)

    @rule(choices=st.data(), cancelled=st.floats(0, 0.3))
    def step(self, choices: Any, cancelled: float) -> None:
        if self.packed:
            self.pack()
        copies: list[Copy] = []
        leaving: list[Beam] = []
        for job in self.running:
            before = list(job.slots)
            parents = choices.draw(st.lists(st.integers(0, len(before) - 1), max_size=job.size), label="parents")
            if not parents:
                leaving.append(job)
                continue
            if choices.draw(st.floats(0, 1), label="fate") < cancelled:
                leaving.append(job)  # but only after its rows have followed
            job.slots, needed = self.rows.follow(before, parents)
            copies += needed
            assert len(needed) == len(parents) - len(set(parents)), "more is copied than must be"
            for index, parent in enumerate(parents):
                if parent not in parents[:index]:
                    assert job.slots[index] is before[parent], "a hypothesis left its parent's slot"
            assert all(slot.row == -1 for slot in before if slot not in job.slots)
            job.hypotheses = [job.hypotheses[parent] for parent in parents]
        self.check_bounds()
        self.memory.apply(copies)
        for job in self.running:
            if job not in leaving:
                for number, row in enumerate(job.rows):
                    letter = "abcdefg"[number]
                    self.memory.targets[row] += letter
                    job.hypotheses[number] += letter
        self.leave(leaving)

    @rule(choices=st.data())
    def cancel(self, choices: Any) -> None:
        """Between two steps."""
        if self.running:
            self.leave(choices.draw(st.lists(st.sampled_from(self.running), unique=True), label="cancelled"))

    def leave(self, jobs: Sequence[Beam]) -> None:
        for job in jobs:
            self.rows.release(job.slots)
            assert job.rows == [-1] * len(job.slots)
            self.running.remove(job)

    def pack(self) -> None:
        moves = self.rows.pack()
        assert all(move.with_source for move in moves)
        assert len(moves) <= self.limit
        self.memory.apply(moves)
        assert self.rows.pack() == []
        assert sorted(row for job in self.running for row in job.rows) == list(range(len(self.rows.slots)))

    @invariant()
    def slots_in_use_have_a_row_each(self) -> None:
        slots = {slot.row: slot for job in self.running for slot in job.slots}
        assert sum(len(job.slots) for job in self.running) == len(slots) == len(self.rows)
        assert all(self.rows.slots[row] is slot for row, slot in slots.items())
        assert [row for row in range(self.limit + 2) if self.rows.in_use(row)] == sorted(slots)
        self.check_bounds()

    @invariant()
    def every_hypothesis_has_its_contents(self) -> None:
        for job in self.running:
            assert [self.memory.targets[row] for row in job.rows] == job.hypotheses
            assert {self.memory.sources[row] for row in job.rows} == {job.source}


TestSteps = Steps.TestCase


def rows_of(*slots: Sequence[Slot]) -> list[list[int]]:
    return [[slot.row for slot in each] for each in slots]


def test_a_beam_grows_at_the_end_and_copies_what_its_new_rows_share() -> None:
    rows = Rows()
    beam, other = [rows.place()], rows.place()
    following, copies = rows.follow(beam, [0, 0, 0])
    assert copies == [Copy(0, 2, with_source=True), Copy(0, 3, with_source=True)]
    assert rows_of(following) == [[0, 2, 3]]
    assert rows.slots == [beam[0], other, *following[1:]]


def test_within_a_beam_only_targets_are_copied_and_most_stay() -> None:
    rows = Rows()
    beam, _ = rows.follow([rows.place()], [0, 0, 0])
    turned, copies = rows.follow(beam, [2, 1, 0])
    assert copies == []
    assert rows_of(turned) == [[2, 1, 0]]
    forked, copies = rows.follow(turned, [1, 1, 0])
    assert copies == [Copy(1, 0, with_source=False)]
    assert rows_of(forked) == [[1, 0, 2]]


def test_a_beam_that_shrinks_leaves_rows_that_packing_fills() -> None:
    rows = Rows()
    beam, _ = rows.follow([rows.place()], [0, 0, 0])
    other = rows.place()
    left, copies = rows.follow(beam, [1])
    assert copies == []
    assert rows.pack() == [Copy(3, 0, with_source=True)]
    assert rows_of(left, [other]) == [[1], [0]]
    assert rows.slots == [other, *left]


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_the_last_rows_move_into_the_freed_ones(leaving: list[int]) -> None:
    rows = Rows()
    slots = [rows.place() for _ in range(3)]
    for index in leaving:
        rows.release([slots[index]])
    moves = rows.pack()
    assert len(moves) == sum(index < 3 - len(leaving) for index in leaving)
    assert set(rows.slots) == {slot for index, slot in enumerate(slots) if index not in leaving}
    assert [slot.row for slot in rows.slots] == list(range(len(rows.slots)))
