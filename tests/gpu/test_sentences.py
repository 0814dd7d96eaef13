"""A wrong sentence is found, a near-tie is not taken for one."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.engine.search import Hypothesis
from serving.runtime.step_result import Candidates
from tests.gpu import sentences
from tests.gpu.beams import unexplained
from tests.gpu.mirror import Comparison, MirroredRuntime
from tests.gpu.sentences import judge
from tests.gpu.work import NEAR_TIE, Translator
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


def hypothesis(*tokens: int, likely: float) -> Hypothesis:
    return Hypothesis(list(tokens), [likely] * len(tokens), "stop")


@pytest.mark.parametrize(
    ("found", "likely", "lost"),
    [
        (hypothesis(5, 6, 3, likely=-0.51), math.nan, []),  # as expected
        (hypothesis(5, 6, 3, likely=-0.9), math.nan, [0]),
        (hypothesis(5, 6, 3, likely=math.nan), math.nan, [0]),
        (hypothesis(5, 7, 8, 3, likely=-0.61), math.nan, []),  # as when it was compared step by step
        (hypothesis(5, 7, 8, 3, likely=-0.1), math.nan, [0]),
        (hypothesis(9, 3, likely=-0.1), -0.5 - NEAR_TIE / 2, []),  # as good, a token for a token
        (hypothesis(9, 3, likely=-0.1), -0.5 - NEAR_TIE * 2, [0]),
        (hypothesis(9, 3, likely=-0.1), math.nan, [0]),
    ],
)
def test_a_beam_that_ends_elsewhere_must_be_explained(found: Hypothesis, likely: float, lost: list[int]) -> None:
    expected, compared = hypothesis(5, 6, 3, likely=-0.5), hypothesis(5, 7, 8, 3, likely=-0.6)

    def read(numbers: Sequence[int], tokens: Sequence[tuple[int, ...]]) -> list[Hypothesis]:
        return [hypothesis(*each, likely=likely if each == (9, 3) else -0.5) for each in tokens]

    assert unexplained([found], [expected], [[compared]], read, 0.02) == lost


def test_a_search_that_goes_wrong_only_unwatched_counts(
    lively_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is compared step by step is right; the others are not."""
    company = Translator.company

    def planted(self: Translator, sources: Sequence[list[int]], prefixes: Sequence[tuple[int, ...]] = ()) -> object:
        found = company(self, sources, prefixes)
        if self.beam_size > 1 and not self.mirrored and self.device != "cpu" and len(sources) > 1:
            found[2] = Hypothesis([9, 9, 9, 3], [-0.1] * 4, "stop")
        return found

    monkeypatch.setattr(Translator, "company", planted)
    start = Translator.__init__

    def noting(self: Translator, runtime: object, rows: int, beam: int = 1, device: str = "cuda") -> None:
        start(self, runtime, rows, beam, device)  # type: ignore[arg-type]
        self.mirrored, self.device = isinstance(runtime, MirroredRuntime), device  # type: ignore[attr-defined]

    monkeypatch.setattr(Translator, "__init__", noting)
    result = sentences.check(lively_bundle("fp16"), lively_bundle("fp32", "standard"), "fake", 12, 3, 16, 4)
    assert result["wrong"] == 1
    assert result["search"]["unexplained"] == [2]  # type: ignore[index]
    assert result["search"]["unexplained_alone"] == []  # type: ignore[index]


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
