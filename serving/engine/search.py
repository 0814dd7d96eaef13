"""What a sentence's search makes of the best tokens of its rows: plain Python, no tensors.

`model.search` is the same, slow and obvious, in PyTorch; both take their rules from `model.choice`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from model.choice import draw, forbidden, generator
from model.tokenizer import END
from serving.engine.decoding import Decoding
from serving.runtime.step_result import Candidates


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence, as token ids without the start token."""

    tokens: list[int]
    """Ends with the end token when ``finish_reason`` is "stop"."""
    log_probabilities: list[float]
    """Natural logarithms, one a token."""
    finish_reason: Literal["stop", "length"]

    @property
    def score(self) -> float:
        """The log-probability of the whole: the sum over its tokens."""
        return sum(self.log_probabilities)


class Search:
    """One sentence's hypotheses, each in a row of its own.

    Before a step the engine asks for `wanted` and `given`; after it, `advance` says which hypotheses go on.
    """

    plain: bool = False
    """Whether always the likeliest token comes next, so that nobody need ask: `serving.runtime.row_state`."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._bound = bool(decoding.no_repeat_ngram or decoding.min_tokens > 1)

    @property
    def wanted(self) -> int:
        """How many of the best tokens the next step must find for each row."""
        raise NotImplementedError

    @property
    def given(self) -> int | None:
        """The next token when it is not searched for: the prefix'."""
        raise NotImplementedError

    def advance(self, candidates: Sequence[Candidates]) -> list[tuple[int, int]]:
        """Take one step's ``candidates``, a row each. Returns the rows that follow as (index of the row each comes
        from, its token); none when the search is over."""
        raise NotImplementedError

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The best, best first, once the search is over."""
        raise NotImplementedError

    @property
    def last(self) -> int:
        """The newest token that is final; not with a beam."""
        raise NotImplementedError

    def _banned(self, tokens: list[int]) -> set[int]:
        return forbidden(tokens, self.decoding.min_tokens, self.decoding.no_repeat_ngram) if self._bound else set()


class Single(Search):
    """Greedy search, or one sample: the next token is final as soon as it is chosen."""

    def __init__(self, decoding: Decoding) -> None:
        super().__init__(decoding)
        self.tokens: list[int] = []
        self._log_probabilities: list[float] = []
        sampling = decoding.sampling
        self._random = generator(sampling.seed, sampling.stream) if sampling else None
        self._choices = sampling.top_k if sampling else 1
        self._forbidden = self._banned(self.tokens)
        self.plain = not (sampling or decoding.prefix or self._bound)

    def finish(self, tokens: list[int], log_probabilities: list[float]) -> None:
        """Take at once what a `plain` search wrote."""
        self.tokens, self._log_probabilities = tokens, log_probabilities

    @property
    def wanted(self) -> int:
        """One, or ``top_k``, and as many more as may turn out to be forbidden."""
        return self._choices + len(self._forbidden)

    @property
    def given(self) -> int | None:
        """The prefix' next token."""
        prefix = self.decoding.prefix
        return prefix[len(self.tokens)] if len(self.tokens) < len(prefix) else None

    def advance(self, candidates: Sequence[Candidates]) -> list[tuple[int, int]]:
        """Choose a token."""
        [(tokens, log_probabilities, given)] = candidates
        if (token := self.given) is not None:
            likely = given
        else:
            banned = self._forbidden
            # The rules may have used up a small vocabulary; then they hold no longer.
            if banned and not banned.issuperset(tokens):
                left = [pair for pair in zip(tokens, log_probabilities, strict=True) if pair[0] not in banned]
                tokens, log_probabilities = [list(part) for part in zip(*left, strict=True)]
            choice = 0
            if self._random:
                sampling = self.decoding.sampling
                assert sampling
                likeliest = log_probabilities[: sampling.top_k]
                choice = draw(likeliest, sampling.temperature, sampling.top_p, self._random.random())
            token, likely = tokens[choice], log_probabilities[choice]
        self.tokens.append(token)
        self._log_probabilities.append(likely)
        if token == END or len(self.tokens) == self.decoding.max_tokens:
            return []
        self._forbidden = self._banned(self.tokens)
        return [(0, token)]

    @property
    def last(self) -> int:
        """The newest token."""
        return self.tokens[-1]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The one there is."""
        reason: Literal["stop", "length"] = "stop" if self.tokens[-1] == END else "length"
        return [Hypothesis(self.tokens, self._log_probabilities, reason)]


class _Open(NamedTuple):
    tokens: list[int]
    log_probabilities: list[float]
    score: float

    def longer(self, token: int, log_probability: float, score: float) -> "_Open":
        return _Open([*self.tokens, token], [*self.log_probabilities, log_probability], score)


class Beam(Search):
    """Beam search: stops when ``beam_size`` hypotheses have ended, or at ``max_tokens``."""

    def __init__(self, decoding: Decoding) -> None:
        super().__init__(decoding)
        self._ended: list[_Open] = []
        self._go_on([_Open([], [], 0.0)])

    def _go_on(self, live: list[_Open]) -> None:
        self._live = live
        self._forbidden = [self._banned(hypothesis.tokens) for hypothesis in live]

    @property
    def wanted(self) -> int:
        """Twice the beam: even if every first choice ends here, as many open hypotheses go on."""
        return 2 * self.decoding.beam_size + max(map(len, self._forbidden))

    @property
    def given(self) -> int | None:
        """The prefix' next token."""
        written, prefix = len(self._live[0].tokens), self.decoding.prefix
        return prefix[written] if written < len(prefix) else None

    def advance(self, candidates: Sequence[Candidates]) -> list[tuple[int, int]]:
        """Of all continuations of all rows, let the best go on."""
        size = self.decoding.beam_size
        if (token := self.given) is not None:
            [hypothesis], likely = self._live, candidates[0].given
            self._go_on([hypothesis.longer(token, likely, hypothesis.score + likely)])
            rows = [(0, token)]
        else:
            following: list[_Open] = []
            rows = []
            for negative, row, _, token, likely in self._best(candidates):
                longer = self._live[row].longer(token, likely, -negative)
                if token == END:
                    self._ended.append(longer)
                else:
                    following.append(longer)
                    rows.append((row, token))
                if len(self._ended) == size or len(following) == size:
                    break
            # None may follow when the rules have used up a small vocabulary.
            if len(self._ended) == size or not following:
                self._ended = self._ended or self._live
                return []
            self._go_on(following)
        if len(self._live[0].tokens) == self.decoding.max_tokens:
            self._ended += self._live[: size - len(self._ended)]
            return []
        return rows

    def _best(self, candidates: Sequence[Candidates]) -> list[tuple[float, int, int, int, float]]:
        """The ``wanted`` best continuations as (negative score, row, rank in the row, token, log-probability)."""
        most = 2 * self.decoding.beam_size
        pool = []
        for row, (hypothesis, banned, (tokens, log_probabilities, _)) in enumerate(
            zip(self._live, self._forbidden, candidates, strict=True)
        ):
            score = hypothesis.score
            allowed = 0
            for rank, (token, likely) in enumerate(zip(tokens, log_probabilities, strict=True)):
                if token not in banned:
                    pool.append((-(score + likely), row, rank, token, likely))
                    allowed += 1
                    if allowed == most:
                        break
        return sorted(pool)[:most]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The best ``alternatives`` by score / tokens ** length_penalty."""
        penalty = self.decoding.length_penalty
        ranked = sorted(self._ended, key=lambda each: -each.score / len(each.tokens) ** penalty)
        return [
            Hypothesis(each.tokens, each.log_probabilities, "stop" if each.tokens[-1] == END else "length")
            for each in ranked[: self.decoding.alternatives]
        ]


def search_for(decoding: Decoding) -> Search:
    """The search that ``decoding`` asks for."""
    return Beam(decoding) if decoding.beam_size > 1 else Single(decoding)
