import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.chunks import ATTENTION_POSITIONS, ENCODE_CHUNK, RUN_TOKENS, chunks
from serving.job import Job, encoding


@given(st.lists(st.integers(1, 400), max_size=30), st.randoms())
def test_chunks_hold_every_job_once_and_little_padding(lengths: list[int], order: random.Random) -> None:
    jobs = [encoding([9] * length, 0.0) for length in lengths]
    found = list(chunks(jobs, lanes=1))
    assert {id(job) for chunk in found for job in chunk} == {id(job) for job in jobs}
    assert sum(map(len, found)) == len(jobs)

    def padding(chunk: list[Job], longest: int) -> float:
        """What attention over ``chunk`` takes more when it is padded to ``longest``, in tokens."""
        return sum(longest**2 - job.source_tokens**2 for job in chunk) / ATTENTION_POSITIONS

    def tokens(chunk: list[Job]) -> int:
        return sum(job.source_tokens for job in chunk)

    assert all(len(chunk) == 1 or tokens(chunk) <= ENCODE_CHUNK for chunk in found)
    for chunk in found:
        assert padding(chunk, chunk[-1].source_tokens) <= RUN_TOKENS, "so much padding costs more than a run"
    for chunk, (longer, *_) in itertools.pairwise(found):
        much = padding(chunk, longer.source_tokens) > RUN_TOKENS
        assert much or tokens(chunk) + longer.source_tokens > ENCODE_CHUNK, "a run for nothing"


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 7, 8, 20])
def test_few_jobs_of_one_length_are_parted_evenly_among_the_lanes(jobs: int, lanes: int) -> None:
    found = list(chunks([encoding([9] * 10, 0.0) for _ in range(jobs)], lanes))
    assert sum(map(len, found)) == jobs
    assert max(map(len, found)) == -(-jobs // lanes)
