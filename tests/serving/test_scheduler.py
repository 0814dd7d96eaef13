"""The scheduler's decisions one by one, and then a simulated engine that asks for all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.scheduler import Scheduler, Ticket


def ticket(source_tokens: int = 5, rows: int = 1, deadline: float = 1e9) -> Ticket:
    return Ticket(2 * source_tokens, source_tokens, rows, deadline)


def lengths(jobs: Iterable[Ticket]) -> list[int]:
    return [job.source_tokens for job in jobs]


def test_jobs_are_admitted_in_order_of_arrival_while_rows_are_free() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=2, encode_tokens=1000)
    first, second, third = jobs = [ticket() for _ in range(3)]
    scheduler.add(jobs)
    assert scheduler.admit() == [first, second]
    scheduler.start([first, second])
    assert scheduler.admit() == []
    assert scheduler.retire(0.0, [first]) == []
    assert scheduler.running == [second]
    assert scheduler.admit() == [third]


def test_a_batch_is_charged_by_its_padded_size() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=10, encode_tokens=40)
    scheduler.add([ticket(10), ticket(10), ticket(15), ticket(2)])
    assert lengths(scheduler.admit()) == [10, 10]
    assert lengths(scheduler.admit()) == [15, 2]


def test_a_job_larger_than_a_batch_is_admitted_alone() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=10, encode_tokens=40)
    scheduler.add([ticket(100), ticket(1)])
    assert lengths(scheduler.admit()) == [100]
    assert lengths(scheduler.admit()) == [1]


def test_a_beam_reserves_the_rows_it_may_grow_into() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=5, encode_tokens=1000)
    beam, other, greedy = jobs = ticket(rows=4), ticket(rows=2), ticket()
    scheduler.add(jobs)
    assert scheduler.admit() == [beam]
    scheduler.start([beam])
    # One row is free; but the greedy one came last, and letting it pass could starve the beam before it.
    assert scheduler.admit() == []
    scheduler.retire(0.0, [beam])
    assert scheduler.admit() == [other, greedy]


def test_jobs_that_do_not_decode_need_no_row() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=1, encode_tokens=100)
    translation, encoding, further, last = jobs = ticket(), ticket(rows=0), ticket(), ticket(rows=0)
    scheduler.add(jobs)
    assert scheduler.admit() == [translation, encoding]
    scheduler.start([translation])
    assert scheduler.admit() == []
    scheduler.retire(0.0, [translation])
    assert scheduler.admit() == [further, last]


def test_jobs_past_their_deadline_or_cancelled_are_dropped_and_not_counted() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=1, encode_tokens=100)
    late, unwanted, good = ticket(deadline=1.0), ticket(), ticket()
    scheduler.add([late, unwanted, good])
    unwanted.cancelled = True
    assert scheduler.drop(now=0.5) == [unwanted]
    assert scheduler.drop(now=2.0) == [late]
    assert scheduler.waiting_tokens == good.cost
    assert scheduler.admit() == [good]


def test_without_word_of_a_cancellation_the_queue_is_only_looked_through_when_a_deadline_has_passed() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=1, encode_tokens=100)
    early, later, unwanted = ticket(deadline=1.0), ticket(deadline=2.0), ticket()
    scheduler.add([later, early, unwanted])
    unwanted.cancelled = True
    assert scheduler.drop(0.9, cancelled=False) == []
    assert scheduler.drop(1.0, cancelled=False) == [early, unwanted]
    assert scheduler.drop(1.9, cancelled=False) == []
    assert scheduler.drop(2.0, cancelled=False) == [later]
    scheduler.add([ticket(deadline=3.0)])
    assert len(scheduler.drop(3.0, cancelled=False)) == 1
    assert scheduler.waiting_tokens == len(scheduler) == 0


@pytest.mark.parametrize("why", ["late", "cancelled"])
def test_running_jobs_that_nobody_waits_for_retire_apart_from_those_that_are_done(why: str) -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=9, encode_tokens=100)
    gone, done, both, left = jobs = [ticket(deadline=5.0 if why == "late" else 1e9) for _ in range(4)]
    left.deadline = 1e9
    scheduler.add(jobs)
    scheduler.start(scheduler.admit())
    assert scheduler.retire(now=4.9) == []
    gone.cancelled = both.cancelled = why == "cancelled"
    # Who is done has an answer, however late.
    assert scheduler.retire(now=5.0, finished=[done, both]) == [gone]
    assert scheduler.running == [left]
    assert scheduler.retire(now=5.0) == []


def test_clearing_gives_back_every_job_whatever_its_stage() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=2, encode_tokens=10)
    running, encoding, waiting = jobs = [ticket(rows=1) for _ in range(3)]
    scheduler.add(jobs[:1])
    scheduler.start(scheduler.admit())
    scheduler.add(jobs[1:])
    assert scheduler.admit() == [encoding]
    assert len(scheduler) == 3
    assert set(scheduler.clear()) == {running, encoding, waiting}
    assert len(scheduler) == scheduler.waiting_tokens == 0
    assert scheduler.admit() == scheduler.running == []


@dataclass(frozen=True)
class Arrival:
    turn: int
    source_tokens: int
    rows: int
    steps: int
    """How long it runs, if it decodes."""
    patience: int | None
    """Turns after which nobody waits any more."""
    cancels: bool
    """Whether it is cancelled then, or late."""

    def ticket(self) -> Ticket:
        late = self.patience is not None and not self.cancels
        return ticket(self.source_tokens, self.rows, self.turn + self.patience if late else 1e9)


ROWS = 6
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        turn=st.integers(0, 12),
        source_tokens=st.integers(1, 30),
        rows=st.integers(0, ROWS),
        steps=st.integers(1, 6),
        patience=st.none() | st.integers(0, 15),
        cancels=st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(rows=st.integers(ROWS, 2 * ROWS), encode_tokens=st.integers(1, 60), arrivals=ARRIVALS)
def test_every_job_is_served_once_in_its_turn_or_let_go(rows: int, encode_tokens: int, arrivals: list[Arrival]) -> None:
    """A simulated engine, turn by turn as the real one: nobody lost, served twice, passed over or starved."""
    scheduler: Scheduler[Ticket] = Scheduler(rows, encode_tokens)
    arrivals = sorted(arrivals, key=lambda arrival: arrival.turn)
    jobs: dict[Ticket, Arrival] = {}
    admitted: list[Ticket] = []
    served: list[Ticket] = []
    gone: list[Ticket] = []
    steps: dict[Ticket, int] = {}
    turn = 0
    while len(jobs) < len(arrivals) or len(scheduler):
        coming = {arrival.ticket(): arrival for arrival in arrivals if arrival.turn == turn}
        jobs.update(coming)
        scheduler.add(coming)
        word = False
        for job, arrival in jobs.items():
            if arrival.cancels and arrival.patience is not None and turn == arrival.turn + arrival.patience:
                job.cancelled = word = True  # done or not
        unwanted = {job for job in jobs if job.gone(turn)}
        leaving = [*scheduler.retire(turn), *scheduler.drop(turn, word)]
        assert set(leaving) <= unwanted
        gone += leaving
        # Whoever is not wanted has left, wherever it was.
        assert not unwanted - set(gone) - set(served)
        waiting = [job for job in jobs if job not in admitted and job not in gone]
        assert scheduler.waiting_tokens == sum(job.cost for job in waiting)

        batch = scheduler.admit()
        assert batch == waiting[: len(batch)], "not in order of arrival"
        assert len(batch) == 1 or len(batch) * max(lengths(batch), default=0) <= encode_tokens
        taken = sum(job.rows for job in [*scheduler.running, *batch])
        assert taken <= rows
        if len(batch) < len(waiting):  # then the next one had no room
            following = waiting[len(batch)]
            padded = max(lengths([*batch, following])) * (len(batch) + 1)
            assert taken + following.rows > rows or (batch and padded > encode_tokens)
        admitted += batch
        assert len(scheduler) == len(jobs) - len(served) - len(gone)

        before = list(scheduler.running)
        scheduler.start(job for job in batch if job.rows)
        served += [job for job in batch if not job.rows]
        assert scheduler.running == [*before, *(job for job in batch if job.rows)]
        for job in scheduler.running:
            steps[job] = steps.get(job, 0) + 1
        finished = [job for job in scheduler.running if steps[job] == jobs[job].steps]
        left = [job for job in scheduler.running if job not in finished]
        late = scheduler.retire(turn + 0.5, finished)
        served += finished
        gone += late
        assert scheduler.running == [job for job in left if job not in late], "the others changed places"
        turn += 1
        assert turn < 1000, "starved"
    assert len(served) == len(set(served))
    assert len(gone) == len(set(gone))
    assert {*served, *gone} == set(jobs)
    assert not {*served} & {*gone}
    assert all(steps[job] == jobs[job].steps for job in served if job.rows)
    assert not scheduler.waiting_tokens
