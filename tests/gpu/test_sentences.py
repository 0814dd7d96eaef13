"""A wrong sentence is found, a near-tie is not taken for one."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.engine.search import Hypothesis
from serving.runtime.step_result import Candidates
from tests.gpu import sentences
from tests.gpu.mirror import Comparison
from tests.gpu.sentences import NEAR_TIE, judge
from tests.serving.runtime.fake_device import FakeDevice, device_runtime
from tests.serving.runtime.faults import exchanged


def written(*tokens: int, likely: float = -0.5) -> Hypothesis:
    return Hypothesis(list(tokens), [likely] * len(tokens), "stop")


def score_of(likely: float) -> Callable[..., list[float]]:
    asked: list[tuple[int, tuple[int, ...]]] = []

    def score(numbers: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> list[float]:
        asked.extend(zip(numbers, prefixes, strict=True))
        return [likely for _ in numbers]

    score.asked = asked  # type: ignore[attr-defined]
    return score


def test_a_sentence_that_parts_at_a_near_tie_is_none_that_is_wrong() -> None:
    score = score_of(-0.5 - NEAR_TIE / 2)
    verdict = judge([written(5, 6, 3), written(8, 9, 3)], [written(5, 6, 3), written(8, 7, 4, 3)], score, 0.01)
    assert (verdict.equal, verdict.near_ties, verdict.wrong) == (1, 1, 0)
    assert verdict.farthest == pytest.approx(NEAR_TIE / 2)
    assert score.asked == [(1, (8, 9))]  # type: ignore[attr-defined]


@pytest.mark.parametrize("likely", [-0.5 - 2 * NEAR_TIE, math.nan])
def test_a_token_that_fp32_likes_less_is_wrong(likely: float) -> None:
    verdict = judge([written(8, 9, 3)], [written(8, 7, 3)], score_of(likely), 0.01)
    assert (verdict.equal, verdict.near_ties, verdict.wrong) == (0, 0, 1)


@pytest.mark.parametrize("likely", [-0.55, math.nan])
def test_equal_tokens_with_other_probabilities_are_wrong(likely: float) -> None:
    verdict = judge([written(8, 9, 3, likely=likely)], [written(8, 9, 3)], score_of(0), 0.01)
    assert (verdict.equal, verdict.wrong) == (1, 1)


def test_a_sentence_that_ends_too_early_is_wrong() -> None:
    assert judge([written(8, 9)], [written(8, 9, 3)], score_of(0), 0.01).wrong == 1


EXPECTED = Candidates([7, 8, 9, 10], [-0.5, -1.5, -3.0, -5.0], 0.0)


@pytest.mark.parametrize(
    ("tokens", "likely", "largest"),
    [
        ([7, 8], [-0.51, -1.5], 0.01),
        ([7, 9], [-0.5, -3.0], 1.5),  # 8 was missed
        ([7, 99], [-0.5, -1.5], 3.5),  # unknown, so less likely than the last that is known
        ([7, 8], [-0.5, math.nan], math.nan),
    ],
)
def test_a_search_is_judged_by_what_it_chose_from(tokens: list[int], likely: list[float], largest: float) -> None:
    comparison = Comparison(0.08)
    comparison.compare(Candidates(tokens, likely, 0.0), EXPECTED, 2)
    assert comparison.largest == pytest.approx(largest, nan_ok=True)
    assert comparison.outside == (not largest <= 0.08)


def test_a_right_device_passes_and_a_fault_does_not(
    lively_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = lively_bundle("fp16")
    arguments = bundle, lively_bundle("fp32", "standard"), "fake", 12, 3, 16, 4
    result = sentences.check(*arguments)
    assert result["passed"], result
    assert result["search"]["decisions"] > 12  # type: ignore[index]

    runtime = sentences.runtime

    def faulty(folder: Path, device: str) -> object:
        return device_runtime(folder, exchanged(FakeDevice(), "token")) if device == "fake" else runtime(folder, device)

    monkeypatch.setattr(sentences, "runtime", faulty)
    assert sentences.check(*arguments)["wrong"]
