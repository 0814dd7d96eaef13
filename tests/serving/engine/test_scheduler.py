"""The scheduler's decisions one by one, and then a simulated engine that asks for all of them."""

import random
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.decoding import Decoding
from serving.engine.scheduler import (
    CROWDED_SECONDS,
    GATHER_SECONDS,
    GATHER_STEPS,
    Scheduler,
    Ticket,
    translation_cost,
)

MANY = 10**9


def ticket(source_tokens: int = 5, rows: int = 1, deadline: float = 1e9) -> Ticket:
    return Ticket(2 * source_tokens, source_tokens, rows, deadline)


def tickets(count: int, source_tokens: int = 5, rows: int = 1) -> list[Ticket]:
    return [ticket(source_tokens, rows) for _ in range(count)]


def scheduler_of(rows: int, encode_tokens: int = MANY, share: int = MANY) -> Scheduler[Ticket]:
    return Scheduler(rows, encode_tokens, share)


def lengths(jobs: Iterable[Ticket]) -> list[int]:
    return [job.source_tokens for job in jobs]


def admit(scheduler: Scheduler[Ticket], now: float = 0.0) -> list[Ticket]:
    """One turn's jobs, all of which decode unless they need no row."""
    admitted = scheduler.admit(now)
    scheduler.start([job for job in admitted if job.rows], now)
    return admitted


def one_by_one(scheduler: Scheduler[Ticket]) -> Iterator[Ticket]:
    """The jobs in the order in which they are admitted, each done before the next."""
    while admitted := admit(scheduler):
        yield from admitted
        scheduler.finish([job for job in admitted if job.rows])


# The order of admission.


def test_single_jobs_are_admitted_in_order_of_arrival_while_rows_are_free() -> None:
    scheduler = scheduler_of(rows=2)
    first, second, third = tickets(3)
    for job in (first, second, third):
        scheduler.add([job])
    assert admit(scheduler) == [first, second]
    assert admit(scheduler) == []
    scheduler.finish([first])
    assert scheduler.running == [second]
    assert admit(scheduler) == [third]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=40))
def test_single_jobs_keep_their_order_whatever_their_cost_and_whenever_they_come(
    arrivals: list[tuple[int, int]],
) -> None:
    """The second of each pair: how many are admitted before the next one comes."""
    scheduler, jobs, admitted = scheduler_of(rows=1), [], []
    for source_tokens, turns in arrivals:
        jobs.append(ticket(source_tokens))
        scheduler.add(jobs[-1:])
        for _ in range(turns):
            admitted += (batch := admit(scheduler))
            scheduler.finish(batch)
    assert [*admitted, *one_by_one(scheduler)] == jobs


def test_jobs_of_one_request_keep_their_order() -> None:
    scheduler = scheduler_of(rows=3)
    jobs = [ticket(source_tokens) for source_tokens in (9, 1, 5, 30, 2, 7)]
    scheduler.add(jobs)
    assert admit(scheduler) == jobs[:3]
    # The one in the middle first, and so on.
    scheduler.finish(jobs[1:2])
    assert admit(scheduler) == jobs[3:4]
    scheduler.finish([jobs[0], jobs[2], jobs[3]])
    assert admit(scheduler) == jobs[4:]


def test_a_request_of_no_jobs_is_nobody() -> None:
    scheduler = scheduler_of(rows=4, share=1)
    scheduler.add([])
    assert len(scheduler) == 0
    assert admit(scheduler) == []
    scheduler.add(jobs := tickets(4))
    assert admit(scheduler) == jobs


def test_a_single_job_that_comes_after_a_list_of_hundreds_is_admitted_next() -> None:
    scheduler = scheduler_of(rows=8, share=2)
    scheduler.add(many := tickets(500))
    assert admit(scheduler) == many[:8]
    single = ticket(rows=2)
    scheduler.add([single])
    for done in many[:2]:  # it needs two rows, and no other job takes the first of them
        assert admit(scheduler) == []
        scheduler.finish([done])
    assert admit(scheduler) == [single]


@pytest.mark.parametrize("before", [0, 1, 7, 499])
@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_share_one_job_of_the_list_at_most_comes_before_it(before: int, rows: int) -> None:
    scheduler = scheduler_of(rows=1, encode_tokens=1)
    scheduler.add(tickets(500, rows=rows))
    order = one_by_one(scheduler)
    for _ in range(before):
        next(order)
    single = ticket(rows=rows)
    scheduler.add([single])
    assert single in (next(order), next(order))


COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(st.lists(COSTS, min_size=2, max_size=4), st.integers(0, 40))
def test_lists_that_wait_from_the_same_moment_take_turns_by_cost(lists: list[list[int]], ahead: int) -> None:
    """What they were given never differs by more than one job's cost; and what came before is nobody's debt."""
    scheduler = scheduler_of(rows=1)
    older = tickets(ahead)
    scheduler.add(older)
    order = one_by_one(scheduler)
    for _ in older:
        next(order)
    requests = [[ticket(source_tokens) for source_tokens in each] for each in lists]
    for jobs in requests:
        scheduler.add(jobs)
    given_ = [0] * len(requests)
    waiting = [len(jobs) for jobs in requests]
    most = [max(job.cost for job in jobs) for jobs in requests]
    for job in order:
        owner = next(index for index, jobs in enumerate(requests) if job in jobs)
        given_[owner] += job.cost
        for one, other in combinations(range(len(requests)), 2):
            if waiting[one] and waiting[other]:
                assert abs(given_[one] - given_[other]) <= max(most[one], most[other])
        waiting[owner] -= 1
    assert not any(waiting)


def test_a_list_that_comes_later_takes_turns_from_then_on() -> None:
    """It has not to make up for what the other was given while it was alone, nor is it to be made up for."""
    scheduler = scheduler_of(rows=1)
    scheduler.add(early := tickets(200))
    order = one_by_one(scheduler)
    for _ in range(100):
        next(order)
    scheduler.add(late := tickets(100))
    taken = [next(order) for _ in range(40)]
    assert 19 <= sum(job in late for job in taken) <= 21
    assert [job for job in taken if job in early] == early[100 : 100 + 40 - sum(job in late for job in taken)]


def test_a_list_that_joins_two_that_take_turns_has_a_third_from_then_on() -> None:
    scheduler = scheduler_of(rows=1)
    for _ in range(2):
        scheduler.add(tickets(100))
    order = one_by_one(scheduler)
    for _ in range(40):
        next(order)
    scheduler.add(late := tickets(100))
    assert 9 <= sum(next(order) in late for _ in range(30)) <= 11


def test_a_list_that_went_on_while_another_had_its_share_owes_nothing_to_those_who_come() -> None:
    scheduler = scheduler_of(rows=4, share=2)
    beam = ticket(rows=3)
    scheduler.add([beam, *tickets(9)])
    scheduler.add(tickets(100))
    scheduler.finish([job for job in admit(scheduler) if job is not beam])
    order = one_by_one(scheduler)
    for _ in range(40):
        next(order)
    scheduler.add(late := tickets(100))
    assert 9 <= sum(next(order) in late for _ in range(20)) <= 11


@pytest.mark.parametrize("others", [1, 3, 20])
@pytest.mark.parametrize(("listed", "single"), [(10, 10), (40, 5), (5, 40)])
def test_a_list_is_not_starved_by_an_endless_stream_of_later_single_jobs(others: int, listed: int, single: int) -> None:
    """While so many of them wait, it has its part of all that is done, to within one job of everybody's."""
    scheduler = scheduler_of(rows=1)
    scheduler.add(many := tickets(1000, listed))
    for _ in range(others):
        scheduler.add([ticket(single)])
    order, given_, passed = one_by_one(scheduler), {True: 0, False: 0}, 0
    for _ in range(1000):
        job = next(order)
        mine = job in many
        given_[mine] += job.cost
        passed = 0 if mine else passed + job.cost
        # All who wait may have come before the clock reached it, and each of them be worth as much as it.
        assert passed <= (others + 1) * (ticket(listed).cost + ticket(single).cost)
        if not mine:
            scheduler.add([ticket(single)])
    assert given_[True] * (others + 1) >= 0.9 * sum(given_.values())


def test_jobs_of_a_request_that_are_dropped_leave_its_turn_to_the_next() -> None:
    scheduler = scheduler_of(rows=1)
    early, late = tickets(3), tickets(1)
    scheduler.add(early)
    scheduler.add(late)
    early[0].cancelled = True
    assert scheduler.drop(0.0) == early[:1]
    assert list(one_by_one(scheduler)) == [early[1], late[0], early[2]]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=40), st.randoms())
def test_after_many_have_left_the_others_come_in_the_order_that_was_theirs(
    requests: list[tuple[int, int]], choices: random.Random
) -> None:
    """A heap out of which some are taken still is one."""
    scheduler = scheduler_of(rows=1)
    jobs = []
    for source_tokens, count in requests:
        jobs.append(tickets(count, source_tokens))
        scheduler.add(jobs[-1])
    order = one_by_one(scheduler)
    served = [next(order) for _ in range(sum(map(len, jobs)) // 3)]
    everybody = [job for each in jobs for job in each]
    for job in everybody:
        job.cancelled = job not in served and choices.random() < 0.6
    left = [job for job in everybody if job not in served and not job.cancelled]
    assert set(scheduler.drop(0.0)) == {job for job in everybody if job.cancelled}
    assert len(scheduler) == len(left) + len(scheduler.running)
    following = list(order)
    assert set(following) == set(left)
    assert len(following) == len(left)
    # First jobs of requests that had none yet: in order of arrival.
    fresh = [next(job for job in each if job in left) for each in jobs if not {*each} & {*served} and {*each} & {*left}]
    assert [job for job in following if job in fresh] == fresh


def test_of_those_who_stay_when_others_leave_the_one_due_first_comes_first() -> None:
    """The queue is a heap: what is left of it, put together, would not be one."""
    for gone in combinations(range(8), 3):
        scheduler = scheduler_of(rows=1)
        jobs = [tickets(2, source_tokens) for source_tokens in (40, 30, 5, 20, 3, 25, 1, 10)]
        for each in jobs:
            scheduler.add(each)
        order = one_by_one(scheduler)
        assert [next(order) for _ in jobs] == [first for first, _ in jobs]
        for index in gone:
            jobs[index][1].cancelled = True
        assert len(scheduler.drop(0.0)) == 3
        assert lengths(order) == sorted(each[1].source_tokens for each in jobs if not each[1].cancelled)


# The room there is.


def test_a_batch_is_charged_by_its_tokens() -> None:
    scheduler = scheduler_of(rows=10, encode_tokens=40)
    scheduler.add([ticket(10), ticket(10), ticket(20), ticket(2)])
    assert lengths(admit(scheduler)) == [10, 10, 20]
    assert lengths(admit(scheduler)) == [2]


def test_a_job_larger_than_a_batch_is_admitted_alone() -> None:
    scheduler = scheduler_of(rows=10, encode_tokens=40)
    scheduler.add([ticket(100), ticket(1)])
    assert lengths(admit(scheduler)) == [100]
    assert lengths(admit(scheduler)) == [1]


def test_a_beam_reserves_the_rows_it_may_grow_into() -> None:
    scheduler = scheduler_of(rows=5)
    beam, other, greedy = ticket(rows=4), ticket(rows=2), ticket()
    for job in (beam, other, greedy):
        scheduler.add([job])
    assert admit(scheduler) == [beam]
    # One row is free; but the greedy one came last, and letting it pass could starve the beam before it.
    assert admit(scheduler) == []
    scheduler.finish([beam])
    assert admit(scheduler) == [other, greedy]


def test_jobs_that_do_not_decode_need_no_row() -> None:
    scheduler = scheduler_of(rows=1, encode_tokens=100)
    translation, encoding, further, last = jobs = ticket(), ticket(rows=0), ticket(), ticket(rows=0)
    for job in jobs:
        scheduler.add([job])
    assert admit(scheduler) == [translation, encoding]
    assert len(scheduler) == 3
    assert admit(scheduler) == []
    scheduler.finish([translation])
    assert admit(scheduler) == [further, last]
    assert len(scheduler) == 1


# The share.


def test_alone_a_request_takes_every_row() -> None:
    scheduler = scheduler_of(rows=8, share=2)
    scheduler.add(jobs := tickets(20))
    assert admit(scheduler) == jobs[:8]
    scheduler.finish(jobs[:3])
    assert admit(scheduler) == jobs[8:11]


def test_of_two_requests_neither_takes_more_than_its_share_though_rows_are_free() -> None:
    scheduler = scheduler_of(rows=8, share=3)
    one, other = tickets(9), tickets(9)
    scheduler.add(one)
    scheduler.add(other)
    assert {*admit(scheduler)} == {*one[:3], *other[:3]}
    assert admit(scheduler) == []
    scheduler.finish([one[1], *other[:2]])
    assert {*admit(scheduler)} == {one[3], *other[3:5]}


def test_a_request_that_took_all_rows_gives_back_those_beyond_its_share_as_they_fall_free() -> None:
    scheduler = scheduler_of(rows=4, share=2)
    scheduler.add(many := tickets(20))
    assert admit(scheduler) == many[:4]
    scheduler.add(single := tickets(1))
    assert admit(scheduler) == []
    scheduler.finish(many[:2])
    assert admit(scheduler) == single
    assert admit(scheduler) == []
    scheduler.finish(many[2:3])
    assert admit(scheduler) == many[4:5]


def test_a_single_job_may_be_wider_than_the_share_but_then_has_no_other_of_its_request_beside_it() -> None:
    scheduler = scheduler_of(rows=8, share=2)
    beam, narrow = ticket(rows=5), ticket()
    scheduler.add([beam, narrow])
    scheduler.add(other := tickets(1))
    assert {*admit(scheduler)} == {beam, *other}
    assert admit(scheduler) == []
    scheduler.finish([beam])
    assert admit(scheduler) == [narrow]


def test_a_wide_job_waits_for_the_others_of_its_request_and_meanwhile_others_pass() -> None:
    scheduler = scheduler_of(rows=8, share=2)
    narrow, beam, later = ticket(), ticket(rows=2), ticket()
    scheduler.add([narrow, beam])
    scheduler.add([later])
    assert admit(scheduler) == [narrow, later]
    scheduler.add(last := tickets(1))
    assert admit(scheduler) == last
    scheduler.finish([narrow])
    assert admit(scheduler) == [beam]


@pytest.mark.parametrize("how", ["done", "cancelled running", "cancelled waiting", "encoded"])
def test_a_request_keeps_to_its_share_for_a_while_after_the_others_left(how: str) -> None:
    scheduler = scheduler_of(rows=6, encode_tokens=MANY, share=2)
    scheduler.add(many := tickets(20))
    other = ticket(rows=0 if how == "encoded" else 6 if how == "cancelled waiting" else 1)
    scheduler.add([other])
    first = admit(scheduler, now=10.0)
    match how:
        case "done":
            scheduler.finish([other])
        case "cancelled running" | "cancelled waiting":
            other.cancelled = True
            assert scheduler.drop(10.5) == [other]
    assert len(scheduler) == 20
    # One that waits for all rows lets nobody pass, so the second may come only now.
    first += admit(scheduler, now=10.0 + 0.99 * CROWDED_SECONDS)
    assert [job for job in first if job is not other] == many[:2]
    scheduler.finish(many[:1])
    assert admit(scheduler, now=10.0 + 0.99 * CROWDED_SECONDS) == many[2:3]
    assert admit(scheduler, now=10.0 + 1.01 * CROWDED_SECONDS) == many[3:7]


def test_the_share_goes_on_as_long_as_others_are_there_waiting_or_not() -> None:
    scheduler = scheduler_of(rows=6, share=2)
    other = ticket()
    scheduler.add([other])
    admit(scheduler)
    scheduler.add(many := tickets(20))
    assert admit(scheduler) == many[:2]
    for turn in range(1, 10):
        assert admit(scheduler, now=turn * CROWDED_SECONDS) == []
    scheduler.finish([other])
    assert admit(scheduler, now=10 * CROWDED_SECONDS) == many[2:6]


def test_requests_that_have_their_share_hold_up_nobody() -> None:
    scheduler = scheduler_of(rows=8, share=2)
    lists = [tickets(50) for _ in range(2)]
    for jobs in lists:
        scheduler.add(jobs)
    assert len(admit(scheduler)) == 4
    for _ in range(30):
        singles = tickets(3)
        for job in singles:
            scheduler.add([job])
        assert admit(scheduler) == singles
        scheduler.finish(singles)
    assert len(scheduler) == 100


def test_jobs_without_rows_know_no_share() -> None:
    scheduler = scheduler_of(rows=2, share=1)
    scheduler.add(jobs := tickets(5, rows=0))
    scheduler.add(others := tickets(5, rows=0))
    assert {*admit(scheduler)} == {*jobs, *others}
    assert len(scheduler) == 0


# Whoever leaves.


def test_jobs_past_their_deadline_or_cancelled_are_dropped_and_not_counted() -> None:
    scheduler = scheduler_of(rows=1, encode_tokens=100)
    late, unwanted, good = ticket(deadline=1.0), ticket(), ticket()
    scheduler.add([late, unwanted, good])
    unwanted.cancelled = True
    assert scheduler.drop(now=0.5) == [unwanted]
    assert scheduler.drop(now=2.0) == [late]
    assert scheduler.waiting_tokens == good.cost
    assert len(scheduler) == 1
    assert admit(scheduler) == [good]


def test_without_word_of_a_cancellation_the_queue_is_only_looked_through_when_a_deadline_has_passed() -> None:
    scheduler = scheduler_of(rows=1, encode_tokens=100)
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
def test_running_jobs_that_nobody_waits_for_are_dropped_unless_they_are_done(why: str) -> None:
    scheduler = scheduler_of(rows=3, encode_tokens=100)
    gone, done, left, waiting = jobs = [ticket(deadline=5.0 if why == "late" else 1e9) for _ in range(4)]
    left.deadline = 1e9
    scheduler.add(jobs)
    assert admit(scheduler) == [gone, done, left]
    assert scheduler.drop(now=4.9, cancelled=False) == []
    gone.cancelled = done.cancelled = waiting.cancelled = why == "cancelled"
    # Who is done has an answer, however late.
    scheduler.finish([done])
    assert scheduler.drop(now=5.0, cancelled=why == "cancelled") == [waiting, gone]
    assert scheduler.running == [left]
    assert len(scheduler) == 1
    assert scheduler.drop(now=5.0) == []


def test_clearing_gives_back_every_job_whatever_its_stage() -> None:
    scheduler = scheduler_of(rows=2, encode_tokens=10)
    running, encoding, *waiting = jobs = tickets(5)
    scheduler.add(jobs[:1])
    admit(scheduler)
    scheduler.add(jobs[1:4])
    scheduler.add(jobs[4:])
    assert scheduler.admit(0.0) == [encoding]
    assert len(scheduler) == 5
    assert scheduler.waiting_tokens == sum(job.cost for job in waiting)
    assert scheduler.load == len(jobs)
    assert len(left := scheduler.clear()) == 5
    assert {*left} == {running, encoding, *waiting}
    assert len(scheduler) == scheduler.waiting_tokens == scheduler.load == 0
    assert scheduler.admit(0.0) == scheduler.running == scheduler.encoding == []


def test_what_was_cleared_is_nobody_to_those_who_come_after() -> None:
    scheduler = scheduler_of(rows=4, share=1)
    scheduler.add(tickets(9))
    admit(scheduler)
    scheduler.clear()
    scheduler.add(jobs := tickets(9))
    assert admit(scheduler) == jobs[:4]


# A simulated engine.


@dataclass(frozen=True)
class Sentence:
    source_tokens: int
    rows: int
    steps: int
    """How long it runs, if it decodes."""
    patience: int | None
    """Turns after which nobody waits any more."""
    cancels: bool
    """Whether it is cancelled then, or late."""

    def ticket(self, turn: int) -> Ticket:
        late = self.patience is not None and not self.cancels
        return ticket(self.source_tokens, self.rows, turn + self.patience if late else 1e9)


@dataclass(frozen=True)
class Request:
    turn: int
    sentences: list[Sentence]


ROWS = 6
REQUESTS = st.lists(
    st.builds(
        Request,
        turn=st.integers(0, 12),
        sentences=st.lists(
            st.builds(
                Sentence,
                source_tokens=st.integers(1, 30),
                rows=st.integers(0, 2) | st.integers(0, ROWS),
                steps=st.integers(1, 6),
                patience=st.none() | st.integers(0, 15),
                cancels=st.booleans(),
            ),
            max_size=8,
        ),
    ),
    max_size=12,
)


@given(
    rows=st.integers(ROWS, 2 * ROWS),
    encode_tokens=st.integers(1, 60),
    share=st.integers(1, ROWS),
    requests=REQUESTS,
)
def test_every_job_is_served_once_in_its_turn_or_let_go(
    rows: int, encode_tokens: int, share: int, requests: list[Request]
) -> None:
    """A simulated engine, turn by turn as the real one: nobody lost, served twice, passed over or starved.

    A turn takes a second.
    """
    scheduler = scheduler_of(rows, encode_tokens, share)
    requests = sorted(requests, key=lambda request: request.turn)
    jobs: dict[Ticket, Sentence] = {}
    begun: dict[Ticket, int] = {}
    """When it came."""
    owners: dict[Ticket, int] = {}
    """Index of its request: in order of arrival."""
    admitted: list[Ticket] = []
    served: list[Ticket] = []
    gone: list[Ticket] = []
    steps: dict[Ticket, int] = {}
    crowded_until = -1.0
    turn = 0
    while turn <= max((request.turn for request in requests), default=0) or len(scheduler):
        for index, request in enumerate(requests):
            if request.turn == turn:
                coming = {sentence.ticket(turn): sentence for sentence in request.sentences}
                jobs.update(coming)
                begun.update(dict.fromkeys(coming, turn))
                owners.update(dict.fromkeys(coming, index))
                scheduler.add(list(coming))
        word = False
        for job, sentence in jobs.items():
            if sentence.cancels and sentence.patience is not None and turn == begun[job] + sentence.patience:
                job.cancelled = word = True  # done or not
        unwanted = {job for job in jobs if job.gone(turn)}
        leaving = scheduler.drop(turn, word)
        assert len(leaving) == len(set(leaving))
        assert set(leaving) <= unwanted
        gone += leaving
        # Whoever is not wanted has left, wherever it was.
        assert not unwanted - set(gone) - set(served)
        waiting = [job for job in jobs if job not in admitted and job not in gone]
        assert scheduler.waiting_tokens == sum(job.cost for job in waiting)
        present = {*jobs} - {*served} - {*gone}
        assert scheduler.load == sum(job.rows or 1 for job in present)
        assert len(scheduler) == len(present)

        if len({owners[job] for job in present}) > 1:
            crowded_until = turn + CROWDED_SECONDS
        crowded = turn < crowded_until
        batch = scheduler.admit(turn)
        assert len(batch) == len(set(batch))
        assert set(batch) <= set(waiting)
        assert len(batch) == 1 or sum(lengths(batch)) <= encode_tokens
        taken = sum(job.rows for job in [*scheduler.running, *batch])
        assert taken <= rows
        held = [
            [job.rows for job in [*scheduler.running, *batch] if owners[job] == each] for each in range(len(requests))
        ]
        if crowded:
            for owner in {owners[job] for job in batch if job.rows}:
                assert sum(held[owner]) <= share or sum(map(bool, held[owner])) == 1, "more than its share"
        for owner in {owners[job] for job in batch}:
            of_it = [job for job in waiting if owners[job] == owner]
            mine = [job for job in batch if owners[job] == owner]
            assert mine == of_it[: len(mine)], "a request's jobs changed places"
        new = [job for job in batch if not any(owners[other] == owners[job] for other in admitted)]
        new_owners = list(dict.fromkeys(owners[job] for job in new))
        admitted += batch
        left_waiting = [job for job in waiting if job not in batch]
        known = {owners[job] for job in admitted}
        never = {owners[job] for job in left_waiting} - known
        assert new_owners == sorted(new_owners), "not in order of arrival"
        assert not new_owners or not never or max(new_owners) < min(never), "passed over"

        following = {}
        for job in left_waiting:
            following.setdefault(owners[job], job)
        # Who could have come and did not: only those behind one for whom there is no room, or who have their share.
        due = [
            job
            for owner, job in following.items()
            if not (crowded and job.rows and sum(held[owner]) and sum(held[owner]) + job.rows > share)
        ]
        assert not due or any(
            taken + job.rows > rows or (batch and sum(lengths(batch)) + job.source_tokens > encode_tokens)
            for job in due
        ), "somebody waits for nothing"
        assert len(scheduler) == len(present)

        before = list(scheduler.running)
        scheduler.start([job for job in batch if job.rows], turn)
        served += [job for job in batch if not job.rows]
        assert scheduler.running == [*before, *(job for job in batch if job.rows)]
        for job in scheduler.running:
            steps[job] = steps.get(job, 0) + 1
        finished = [job for job in scheduler.running if steps[job] == jobs[job].steps]
        left = [job for job in scheduler.running if job not in finished]
        scheduler.finish(finished)
        served += finished
        assert scheduler.running == left, "the others changed places"
        assert len(scheduler) == len(jobs) - len(served) - len(gone)
        turn += 1
        # In every turn somebody comes in or gets on.
        assert turn <= 14 + sum(sentence.steps + 1 for sentence in jobs.values()), "starved"
    assert len(served) == len(set(served))
    assert len(gone) == len(set(gone))
    assert {*served, *gone} == set(jobs)
    assert not {*served} & {*gone}
    assert all(steps[job] == jobs[job].steps for job in served if job.rows)
    assert scheduler.waiting_tokens == scheduler.load == 0


def test_a_job_that_is_cancelled_while_the_queue_is_looked_through_is_not_lost() -> None:
    class Flips(Ticket):
        looks = 0

        def gone(self, now: float) -> bool:
            self.looks += 1
            return self.looks > 1

    scheduler: Scheduler[Ticket] = Scheduler(rows=4, encode_tokens=1000, share=4)
    cancelled, flips = ticket(), Flips(1, 1, 1, 1e9)
    cancelled.cancelled = True
    scheduler.add([cancelled])
    scheduler.add([flips])
    assert scheduler.drop(0.0) == [cancelled]
    assert len(scheduler) == 1
    assert scheduler.admit(0.0) == [flips]


@pytest.mark.parametrize("calm", [0, 1000])
def test_what_a_list_may_not_use_it_does_not_get_later_instead(calm: int) -> None:
    """A beam as wide as all rows gets its turn, however long a list was held to its share before."""
    scheduler: Scheduler[Ticket] = Scheduler(rows=8, encode_tokens=1000, share=1)
    scheduler.add([Ticket(10, 5, 1, 1e9) for _ in range(3000)])
    ends: dict[Ticket, int] = {}

    def turn(number: int) -> None:
        scheduler.finish([job for job in scheduler.running if ends[job] <= number])
        admitted = scheduler.admit(number / 100)
        ends.update(dict.fromkeys(admitted, number + 4))
        scheduler.start(admitted, number / 100)

    for number in range(calm):
        scheduler.add([Ticket(10, 5, 1, 1e9)])
        turn(number)
    beam = Ticket(80, 5, 8, 1e9)
    scheduler.add([beam])
    for number in range(calm, calm + 10):
        turn(number)
    assert beam in ends


def test_its_length_may_be_asked_from_another_thread() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=64, encode_tokens=1000, share=16)
    faults: list[BaseException] = []
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                len(scheduler)
        except RuntimeError as fault:
            faults.append(fault)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        looking = threading.Thread(target=look)
        looking.start()
        for _ in range(300):
            for _ in range(20):
                scheduler.add([ticket(1)])
            scheduler.start(scheduler.admit(0.0), 0.0)
            scheduler.finish(list(scheduler.running))
        over.set()
        looking.join()
    finally:
        sys.setswitchinterval(before)
    assert not faults


# Turns.


def turn(scheduler: Scheduler[Ticket], now: float, seconds: float = 0.0) -> list[Ticket]:
    """A turn that takes ``seconds``; returns whom it encodes."""
    admitted = scheduler.take_turn(now)
    if admitted:
        scheduler.start([job for job in admitted if job.rows], now)
    scheduler.end_turn(seconds)
    return admitted


def test_who_comes_while_others_decode_is_gathered_for_some_steps() -> None:
    scheduler = scheduler_of(rows=8)
    first, *others = tickets(5)
    scheduler.add([first])
    assert turn(scheduler, 0.0) == [first]
    for job in others[:2]:
        scheduler.add([job])
        assert turn(scheduler, 0.0) == []
    for _ in range(GATHER_STEPS - 3):
        assert turn(scheduler, 0.0) == []
    assert turn(scheduler, 0.0) == others[:2]
    for _ in range(GATHER_STEPS):
        assert turn(scheduler, 0.0) == []
    scheduler.add(others[2:3])
    assert turn(scheduler, 0.0) == others[2:3], "nobody had come for long"


def test_nobody_is_gathered_for_longer_than_a_moment_or_while_nothing_is_decoded() -> None:
    scheduler = scheduler_of(rows=8)
    first, second, third = tickets(3)
    scheduler.add([first])
    turn(scheduler, 1.0)
    scheduler.add([second])
    assert turn(scheduler, 1.0 + 0.9 * GATHER_SECONDS) == []
    assert turn(scheduler, 1.0 + 1.1 * GATHER_SECONDS) == [second]
    scheduler.finish([first, second])
    scheduler.add([third])
    assert turn(scheduler, 1.0 + 1.1 * GATHER_SECONDS) == [third]


def test_the_throughput_is_that_of_turns_after_which_others_still_wait() -> None:
    scheduler = scheduler_of(rows=2)
    before = scheduler.throughput.rate
    scheduler.add(tickets(2))
    turn(scheduler, 0.0, seconds=100.0)
    assert scheduler.throughput.rate == before, "there was room for all"
    scheduler.finish(list(scheduler.running))
    scheduler.add(tickets(3, source_tokens=500))
    turn(scheduler, 1.0, seconds=2.0)  # 2,000 tokens, of two jobs
    crowded = scheduler.throughput.rate
    assert crowded == pytest.approx((2000 + 500) / (2 + 0.25))
    turn(scheduler, 1.0, seconds=2.0)  # nobody has left: nothing is admitted, and the time passes
    assert scheduler.throughput.rate < crowded


@pytest.mark.parametrize(
    ("decoding", "written"),
    [
        (Decoding(100), 10),  # about twice the source
        (Decoding(7), 7),
        (Decoding(100, min_tokens=30), 30),
        (Decoding(100, prefix=(5,) * 20), 30),
        (Decoding(12, prefix=(5,) * 8), 12),
        (Decoding(7, beam_size=4), 28),
    ],
)
def test_a_translation_costs_what_it_reads_and_is_expected_to_write(decoding: Decoding, written: int) -> None:
    assert translation_cost(5, decoding) == 5 + written
