import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.encoder_batches import ATTENTION_POSITIONS, BATCH_TOKENS, RUN_TOKENS, encoder_batches
from serving.engine.jobs import Job, encoding


@given(st.lists(st.integers(1, 400), max_size=30), st.randoms())
def test_batches_hold_every_job_once_and_little_padding(lengths: list[int], order: random.Random) -> None:
    jobs = [encoding([9] * length, 0.0) for length in lengths]
    found = encoder_batches(jobs, lanes=1)
    assert {id(job) for batch in found for job in batch} == {id(job) for job in jobs}
    assert sum(map(len, found)) == len(jobs)

    def padding(batch: list[Job], longest: int) -> float:
        """What attention over ``batch`` takes more when it is padded to ``longest``, in tokens."""
        return sum(longest**2 - job.source_tokens**2 for job in batch) / ATTENTION_POSITIONS

    def tokens(batch: list[Job]) -> int:
        return sum(job.source_tokens for job in batch)

    assert all(len(batch) == 1 or tokens(batch) <= BATCH_TOKENS for batch in found)
    for batch in found:
        assert padding(batch, batch[-1].source_tokens) <= RUN_TOKENS, "so much padding costs more than a run"
    for batch, (longer, *_) in itertools.pairwise(found):
        much = padding(batch, longer.source_tokens) > RUN_TOKENS
        assert much or tokens(batch) + longer.source_tokens > BATCH_TOKENS, "a run for nothing"


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 7, 8, 20])
def test_few_jobs_of_one_length_are_parted_evenly_among_the_lanes(jobs: int, lanes: int) -> None:
    found = encoder_batches([encoding([9] * 10, 0.0) for _ in range(jobs)], lanes)
    assert sum(map(len, found)) == jobs
    assert max(map(len, found)) == -(-jobs // lanes)
