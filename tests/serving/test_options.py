from typing import Any

import pytest
from pydantic import ValidationError

from serving.engine.decoding import Sampling
from serving.options import GREEDY, SamplingOptions, TranslateOptions


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"max_tokens": 101}, "max_tokens", "is 101; the limit is 100"),
        ({"min_tokens": 101}, "min_tokens", "is 101; the limit is 100"),
        ({"min_tokens": 11, "max_tokens": 10}, "min_tokens", "is 11; the limit is max_tokens, 10"),
        ({"beam_size": 9}, "beam_size", "is 9; the limit is 8, the lesser of"),
        ({"beam_size": 2, "alternatives": 3}, "alternatives", "is 3; the limit is beam_size, 2: widen the beam"),
        ({"beam_size": 2, "sampling": {}}, "sampling", "takes a beam_size of 1, not 2"),
    ],
)
def test_what_does_not_go_together_is_named_with_its_limit(given: dict[str, Any], field: str, said: str) -> None:
    [(named, reason)] = TranslateOptions.model_validate(given).faults(most_tokens=100, largest_beam=8)
    assert named == field
    assert said in reason


def test_all_faults_are_named_at_once() -> None:
    options = TranslateOptions(max_tokens=101, beam_size=9, alternatives=10)
    assert [field for field, _ in options.faults(100, 8)] == ["max_tokens", "beam_size", "alternatives"]
    assert GREEDY.faults(100, 8) == []


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {"temperature": 2.5},
        {"top_k": 0},
        {"top_k": 257},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": None},
        {"temperature": float("nan")},
        {"length": 5},
    ],
)
def test_senseless_sampling_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        SamplingOptions.model_validate(given)


def test_a_seed_that_is_not_given_is_another_each_time() -> None:
    seeds = {SamplingOptions().seed for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) < 2**53


def test_sentences_share_a_seed_and_differ_in_their_stream() -> None:
    options = TranslateOptions(sampling=SamplingOptions(temperature=0.5, top_k=9, top_p=0.9, seed=7), min_tokens=2)
    decoding = options.decoding(20, (5, 6), stream=3)
    assert decoding.sampling == Sampling(0.5, 9, 0.9, 7, 3)
    assert (decoding.max_tokens, decoding.min_tokens, decoding.prefix) == (20, 2, (5, 6))
    again = options.reseeded(2**63).decoding(20, (), stream=3)
    assert again.sampling == decoding.sampling


def test_every_option_is_documented() -> None:
    for options in (TranslateOptions, SamplingOptions):
        assert all(field.description for field in options.model_fields.values())
