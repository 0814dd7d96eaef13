import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.encoder_batches import encoder_batches
from serving.engine.jobs import Job, encoding
from serving.runtime.device_runtime import ENCODER_COST
from serving.runtime.interface import EncoderCost

CPU = EncoderCost(lanes=1, batch_tokens=256, batch_positions=10**9, run_tokens=8, token_pairs=300)


@given(st.lists(st.integers(1, 400), max_size=30), st.randoms(), st.sampled_from([CPU, ENCODER_COST]))
def test_batches_hold_every_job_once_and_little_padding(
    lengths: list[int], order: random.Random, cost: EncoderCost
) -> None:
    jobs = [encoding([9] * length, 0.0) for length in lengths]
    found = encoder_batches(jobs, cost)
    assert {id(job) for batch in found for job in batch} == {id(job) for job in jobs}
    assert sum(map(len, found)) == len(jobs)

    def padding(batch: list[Job], longest: int) -> float:
        """What attention over ``batch`` takes more when it is padded to ``longest``, in tokens."""
        return sum(longest**2 - job.source_tokens**2 for job in batch) / cost.token_pairs

    def tokens(batch: list[Job]) -> int:
        return sum(job.source_tokens for job in batch)

    assert all(len(batch) == 1 or tokens(batch) <= cost.batch_tokens for batch in found)
    assert all(len(batch) * batch[-1].source_tokens <= cost.batch_positions for batch in found)
    for batch in found:
        assert padding(batch, batch[-1].source_tokens) <= cost.run_tokens, "so much padding costs more than a run"
    for batch, (longer, *_) in itertools.pairwise(found):
        much = padding(batch, longer.source_tokens) > cost.run_tokens
        full = (len(batch) + 1) * longer.source_tokens > cost.batch_positions
        assert much or full or tokens(batch) + longer.source_tokens > cost.batch_tokens, "a run for nothing"


@pytest.mark.parametrize("lanes", [2, 3, 8])
@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 7, 8, 20])
def test_few_jobs_of_one_length_are_parted_evenly_among_the_lanes(jobs: int, lanes: int) -> None:
    found = encoder_batches([encoding([9] * 10, 0.0) for _ in range(jobs)], CPU._replace(lanes=lanes))
    assert sum(map(len, found)) == jobs
    assert max(map(len, found)) == -(-jobs // lanes)


def test_a_gpu_encodes_hundreds_of_sentences_in_a_few_runs() -> None:
    """Of the lengths of a corpus: most are short, a few long."""
    lengths = [4 + number * number // 500 for number in range(256)]
    assert len(encoder_batches([encoding([9] * length, 0.0) for length in lengths], ENCODER_COST)) <= 4
    assert len(encoder_batches([encoding([9] * length, 0.0) for length in lengths], CPU)) > 40
