from hypothesis import given
from hypothesis import strategies as st

from serving.scheduler import Scheduler, Ticket


def ticket(source_tokens: int = 5, decodes: bool = True, deadline: float = 1e9) -> Ticket:
    return Ticket(2 * source_tokens, source_tokens, decodes, deadline)


def test_jobs_are_admitted_in_order_of_arrival_while_rows_are_free() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=2, encode_tokens=1000)
    first, second, third = jobs = [ticket() for _ in range(3)]
    scheduler.add(jobs)
    assert scheduler.admit() == [first, second]
    scheduler.start([first, second])
    assert scheduler.admit() == []
    assert list(scheduler.retire([0])) == [(1, 0)]
    assert scheduler.running == [second]
    assert scheduler.admit() == [third]


def test_a_batch_is_charged_by_its_padded_size() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=10, encode_tokens=40)
    scheduler.add([ticket(10), ticket(10), ticket(15), ticket(2)])
    assert [job.source_tokens for job in scheduler.admit()] == [10, 10]
    assert [job.source_tokens for job in scheduler.admit()] == [15, 2]


def test_a_job_larger_than_a_batch_is_admitted_alone() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=10, encode_tokens=40)
    scheduler.add([ticket(100), ticket(1)])
    assert [job.source_tokens for job in scheduler.admit()] == [100]
    assert [job.source_tokens for job in scheduler.admit()] == [1]


def test_jobs_that_do_not_decode_need_no_row() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=1, encode_tokens=100)
    scheduler.add([ticket(), ticket(decodes=False), ticket()])
    assert [job.decodes for job in scheduler.admit()] == [True, False]


def test_jobs_past_their_deadline_or_cancelled_are_dropped_and_not_counted() -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=1, encode_tokens=100)
    late, unwanted, good = ticket(deadline=1.0), ticket(), ticket()
    scheduler.add([late, unwanted, good])
    unwanted.cancelled = True
    assert scheduler.drop(now=2.0) == [late, unwanted]
    assert scheduler.waiting_tokens == good.cost
    scheduler.start(scheduler.admit())
    assert scheduler.gone(now=2.0) == []
    good.cancelled = True
    assert scheduler.gone(now=2.0) == [0]


@given(count=st.integers(1, 12), chosen=st.sets(st.integers(0, 11)))
def test_retiring_rows_moves_every_other_job_to_the_row_it_is_told(count: int, chosen: set[int]) -> None:
    scheduler: Scheduler[Ticket] = Scheduler(rows=12, encode_tokens=1000)
    jobs = [ticket() for _ in range(count)]
    scheduler.start(jobs)
    rows: list[Ticket] = list(jobs)
    gone = {row for row in chosen if row < count}
    for origin, row in scheduler.retire(gone):
        rows[row] = rows[origin]
    assert scheduler.running == rows[: len(scheduler.running)]
    assert {id(job) for job in scheduler.running} == {id(job) for row, job in enumerate(jobs) if row not in gone}


@given(
    rows=st.integers(1, 6),
    encode_tokens=st.integers(1, 60),
    arrivals=st.lists(
        st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(1, 5)), max_size=5), max_size=8
    ),
)
def test_every_job_is_served_once_within_the_limits(
    rows: int, encode_tokens: int, arrivals: list[list[tuple[int, bool, int]]]
) -> None:
    """A simulated engine: each decoding job runs for a number of steps; nobody may be lost, doubled or starved."""
    scheduler: Scheduler[Ticket] = Scheduler(rows, encode_tokens)
    steps: dict[int, int] = {}
    order: list[Ticket] = []
    admitted: list[Ticket] = []
    turn = 0
    while turn < len(arrivals) or len(scheduler):
        for source_tokens, decodes, length in arrivals[turn] if turn < len(arrivals) else []:
            job = ticket(source_tokens, decodes)
            steps[id(job)] = length
            order.append(job)
            scheduler.add([job])
        batch = scheduler.admit()
        assert len(batch) == 1 or max((job.source_tokens for job in batch), default=0) * len(batch) <= encode_tokens
        admitted += batch
        scheduler.start(job for job in batch if job.decodes)
        assert len(scheduler.running) <= rows
        for job in scheduler.running:
            steps[id(job)] -= 1
        list(scheduler.retire([row for row, job in enumerate(scheduler.running) if steps[id(job)] == 0]))
        turn += 1
        assert turn < 1000, "starved"
    assert [id(job) for job in admitted] == [id(job) for job in order]
    assert scheduler.waiting_tokens == 0
    assert all(steps[id(job)] == 0 for job in order if job.decodes)
