"""Rows against a plain list of contents: whatever joins, follows, leaves and moves, each hypothesis finds its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.rows import Copy, Rows
from serving.scheduler import Ticket


@dataclass(eq=False)
class Beam(Ticket):
    """A job, and what its hypotheses have written."""

    source: int = 0
    hypotheses: list[str] = field(default_factory=list)


def beam(rows: int, source: int = 0) -> Beam:
    return Beam(cost=1, source_tokens=1, rows=rows, deadline=1e9, source=source, hypotheses=[""])


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
            if copy.fresh:
                self.sources[copy.row] = self.sources[copy.origin]


class Steps(RuleBasedStateMachine):
    """An engine's turns: some join, rows are packed, then in a step some follow, some finish, some are cancelled."""

    @initialize(limit=st.integers(1, 14))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.rows: Rows[Beam] = Rows()
        self.memory = Memory()
        self.running: list[Beam] = []
        self.joined = 0

    def fits(self, job: Beam) -> bool:
        return sum(other.rows for other in self.running) + job.rows <= self.limit

    def check_bounds(self) -> None:
        assert len(self.rows) <= sum(job.rows for job in self.running) <= self.limit
        assert len(self.rows) <= len(self.rows.owners) <= self.limit

    @rule(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
    def join(self, sizes: list[int]) -> None:
        for size in sizes:
            self.joined += 1
            job = beam(size, self.joined)
            if self.fits(job):
                extent, freed = len(self.rows.owners), len(self.rows.owners) - len(self.rows)
                row = self.rows.place(job)
                assert job.places == [row]
                assert row < extent if freed else row == extent, "a freed row is filled first"
                assert all(row not in other.places for other in self.running)
                self.memory.sources[row], self.memory.targets[row] = job.source, ""
                self.running.append(job)

    @rule(choices=st.data(), cancelled=st.floats(0, 0.3))
    def step(self, choices: Any, cancelled: float) -> None:
        self.pack()
        copies: list[Copy] = []
        leaving: list[Beam] = []
        for job in self.running:
            before = list(job.places)
            parents = choices.draw(st.lists(st.integers(0, len(before) - 1), max_size=job.rows), label="parents")
            if not parents:
                leaving.append(job)
                continue
            if choices.draw(st.floats(0, 1), label="fate") < cancelled:
                leaving.append(job)  # but only after its rows have followed
            found = self.rows.follow(job, parents)
            copies += found
            assert len(found) == len(parents) - len(set(parents)), "more is copied than must be"
            for index, parent in enumerate(parents):
                if parent not in parents[:index]:
                    assert job.places[index] == before[parent], "a hypothesis left its parent's row"
            job.hypotheses = [job.hypotheses[parent] for parent in parents]
        self.check_bounds()
        self.memory.apply(copies)
        for job in self.running:
            if job not in leaving:
                for number, row in enumerate(job.places):
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
            self.rows.release(job)
            assert job.places == []
            self.running.remove(job)

    def pack(self) -> None:
        moves = self.rows.pack()
        assert all(move.fresh for move in moves)
        assert len(moves) <= self.limit
        self.memory.apply(moves)
        assert self.rows.pack() == []
        assert sorted(row for job in self.running for row in job.places) == list(range(len(self.rows.owners)))

    @invariant()
    def rows_in_use_are_owned(self) -> None:
        places = {row: job for job in self.running for row in job.places}
        assert sum(len(job.places) for job in self.running) == len(places) == len(self.rows)
        assert all(self.rows.owners[row] is job for row, job in places.items())
        self.check_bounds()

    @invariant()
    def every_hypothesis_has_its_contents(self) -> None:
        for job in self.running:
            assert [self.memory.targets[row] for row in job.places] == job.hypotheses
            assert {self.memory.sources[row] for row in job.places} == {job.source}


TestSteps = Steps.TestCase


def test_a_beam_grows_at_the_end_and_copies_what_its_new_rows_share() -> None:
    rows: Rows[Beam] = Rows()
    one, other = beam(3), beam(1)
    rows.place(one)
    rows.place(other)
    assert rows.follow(one, [0, 0, 0]) == [Copy(0, 2, fresh=True), Copy(0, 3, fresh=True)]
    assert one.places == [0, 2, 3]
    assert rows.owners == [one, other, one, one]


def test_within_a_beam_only_targets_are_copied_and_most_stay() -> None:
    rows: Rows[Beam] = Rows()
    job = beam(3)
    rows.place(job)
    rows.follow(job, [0, 0, 0])
    assert rows.follow(job, [2, 1, 0]) == []
    assert job.places == [2, 1, 0]
    assert rows.follow(job, [1, 1, 0]) == [Copy(1, 0, fresh=False)]
    assert job.places == [1, 0, 2]


def test_a_beam_that_shrinks_leaves_rows_that_packing_fills() -> None:
    rows: Rows[Beam] = Rows()
    one, other = beam(3), beam(1)
    rows.place(one)
    rows.follow(one, [0, 0, 0])
    rows.place(other)
    assert rows.follow(one, [1]) == []
    assert rows.pack() == [Copy(3, 0, fresh=True)]
    assert (one.places, other.places, rows.owners) == ([1], [0], [other, one])


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_the_last_rows_move_into_the_freed_ones(leaving: list[int]) -> None:
    rows: Rows[Beam] = Rows()
    jobs = [beam(1) for _ in range(3)]
    for job in jobs:
        rows.place(job)
    for index in leaving:
        rows.release(jobs[index])
    moves = rows.pack()
    assert len(moves) == sum(index < 3 - len(leaving) for index in leaving)
    assert set(rows.owners) == {job for index, job in enumerate(jobs) if index not in leaving}
    assert [rows.owners[place] for job in rows.owners for place in job.places] == rows.owners
