"""Which hypotheses of a device's beam search nothing explains: they count as wrong."""

from collections.abc import Callable, Sequence

from serving.engine.decoding import Decoding
from serving.engine.search import Hypothesis
from tests.gpu.work import NEAR_TIE

Read = Callable[[Sequence[int], Sequence[tuple[int, ...]]], list[Hypothesis]]
"""What fp32 says of these tokens, given for the sentences of these numbers: their log-probabilities."""


def unexplained(
    found: Sequence[Hypothesis],
    expected: Sequence[Hypothesis],
    proven: Sequence[Sequence[Hypothesis]],
    read: Read,
    bound: float,
) -> list[int]:
    """The numbers of the sentences for which a device ``found`` what it should not have.

    It should find what fp32 ``expected``, or what it found itself when its every decision was compared (``proven``, for
    each sentence), with log-probabilities within ``bound`` of theirs. Anything else must be as good: its score by fp32,
    as the search ranks by it, is within `NEAR_TIE` of that of what fp32 expected, or above.
    """
    lost, others = [], []
    for number, hypothesis in enumerate(found):
        same = [each for each in (expected[number], *proven[number]) if list(each.tokens) == list(hypothesis.tokens)]
        if not same:
            others.append(number)
        elif not any(_near(hypothesis, each, bound) for each in same):
            lost.append(number)
    ours = read(others, [tuple(found[number].tokens) for number in others])
    best = read(others, [tuple(expected[number].tokens) for number in others])
    for number, one, other in zip(others, ours, best, strict=True):
        if not _rank(other) - _rank(one) <= NEAR_TIE:  # NaN is lost, too
            lost.append(number)
    return sorted(lost)


def _near(one: Hypothesis, other: Hypothesis, bound: float) -> bool:
    pairs = zip(one.log_probabilities, other.log_probabilities, strict=True)
    return all(abs(a - b) <= bound for a, b in pairs)


def _rank(hypothesis: Hypothesis) -> float:
    """See `serving.engine.search.Beam.hypotheses`."""
    return hypothesis.score / len(hypothesis.tokens) ** Decoding.length_penalty
