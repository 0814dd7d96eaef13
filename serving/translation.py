"""A text's translations, put together from its sentences' hypotheses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from model.sentences import Sentence
from serving.engine.search import Hypothesis


@dataclass(frozen=True)
class Translation:
    """One translation of a text."""

    text: str
    score: float
    """Sum of the log-probabilities of its tokens."""
    ids: list[int]
    """Its tokens, those of one sentence after those of another, end tokens included."""
    log_probabilities: list[float]
    """Natural logarithms, one a token."""
    finish_reason: Literal["stop", "length"]
    """"length" when any sentence ran into its limit, else "stop"."""
    alternatives: list["Translation"] = field(default_factory=list)
    """Where several were asked for, the best of them, best first: the first is this one."""

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)

    @property
    def mean_score(self) -> float:
        """The score per token."""
        return self.score / max(1, self.tokens)


def join(
    sentences: Sequence[Sentence],
    hypotheses: Sequence[Sequence[Hypothesis]],
    decode: Callable[[Sequence[int]], str],
    alternatives: int = 1,
    length_penalty: float = 1.0,
) -> Translation:
    """The translation of a text of ``sentences`` from each one's ``hypotheses``, best first, and its ``alternatives``.

    A combination of hypotheses ranks by the sum of score / tokens ** ``length_penalty``, by which each sentence's own
    are ranked. Hypotheses of a sentence that are spelt alike count as the best of them, so there may be fewer
    alternatives than asked for.
    """
    if alternatives == 1:
        return _combined(sentences, [(decode(best.tokens), best) for best, *_ in hypotheses])
    spelt = [_spelt(each, decode) for each in hypotheses]
    ranks = [[each.score / len(each.tokens) ** length_penalty for _, each in texts] for texts in spelt]
    found = [
        _combined(sentences, [texts[index] for texts, index in zip(spelt, choice, strict=True)])
        for choice in best_combinations(ranks, alternatives)
    ]
    return replace(found[0], alternatives=found)


def best_combinations(ranks: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """The ``count`` best ways to choose one of each list of ``ranks``, as indices, best first: by the sum of what is
    chosen. Each list is in order, best first."""
    # Each is its sum and a chain (chain before, index): copying lists would take the square of their length.
    chains: list[tuple[float, tuple[Any, ...]]] = [(0.0, ())]
    for values in ranks:
        # Sums that were rounded otherwise than the engine's must not undo its order.
        ordered = list(accumulate(values[:count], min))
        longer = [(total + value, (chain, index)) for total, chain in chains for index, value in enumerate(ordered)]
        chains = sorted(longer, key=lambda each: -each[0])[:count]
    found = []
    for _, chain in chains:
        choice = []
        while chain:
            chain, index = chain
            choice.append(index)
        found.append(choice[::-1])
    return found


def _spelt(hypotheses: Sequence[Hypothesis], decode: Callable[[Sequence[int]], str]) -> list[tuple[str, Hypothesis]]:
    """Different texts, each with the best of ``hypotheses`` that is spelt so."""
    texts: dict[str, Hypothesis] = {}
    for hypothesis in hypotheses:
        texts.setdefault(decode(hypothesis.tokens), hypothesis)
    return list(texts.items())


def _combined(sentences: Sequence[Sentence], chosen: Sequence[tuple[str, Hypothesis]]) -> Translation:
    parts = [piece.before + text + piece.after for piece, (text, _) in zip(sentences, chosen, strict=True)]
    return Translation(
        text="".join(parts),
        score=sum(each.score for _, each in chosen),
        ids=[token for _, each in chosen for token in each.tokens],
        log_probabilities=[likely for _, each in chosen for likely in each.log_probabilities],
        finish_reason="length" if any(each.finish_reason == "length" for _, each in chosen) else "stop",
    )
