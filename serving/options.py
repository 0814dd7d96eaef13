"""How texts are to be translated: what a request may ask for, and within which limits."""

import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serving.engine.decoding import Decoding, Sampling


class Strict(BaseModel):
    """Unknown fields are refused, and nothing is converted on the quiet."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _random_seed() -> int:
    return secrets.randbelow(2**53)  # what every JSON reader can hold and send back


class SamplingOptions(Strict):
    """Draw each token instead of taking the likeliest; the same seed draws the same translation."""

    temperature: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    """Log-probabilities are divided by it: below 1 likely tokens become likelier, above 1 less so."""
    top_k: Annotated[int, Field(ge=1, le=256)] = 50
    """Draw from so many of the likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of these, draw from the fewest whose probabilities reach this sum."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default_factory=_random_seed)
    """Where the draw begins; a random one unless given. The answer says which it was."""


class TranslateOptions(Strict):
    """The settings of a search, the same for every sentence. Tokens are target tokens with the end token."""

    beam_size: Annotated[int, Field(ge=1)] = 1
    """Hypotheses that are followed at one time; 1 is greedy search."""
    alternatives: Annotated[int, Field(ge=1)] = 1
    """Above 1, each translation comes with so many of the best, at most ``beam_size``. Where two are spelt alike one
    is left out. Those of a text of several sentences are the best combinations of its sentences' hypotheses."""
    length_penalty: Annotated[float, Field(ge=0, le=5)] = 1.0
    """A beam's hypotheses are ranked by score / tokens ** length_penalty: the larger, the longer."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """The fewest tokens of a sentence; at most ``max_tokens``."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """The most tokens of a sentence; twice its source's, ten and what it is given to begin with unless given."""
    no_repeat_ngram: Annotated[int, Field(ge=0, le=10)] = 0
    """No sentence repeats as many tokens in a row; 0 lets it."""
    sampling: SamplingOptions | None = None
    """Draw the translation instead of searching for the likeliest; only with a ``beam_size`` of 1."""

    def faults(self, most_tokens: int, largest_beam: int) -> list[tuple[str, str]]:
        """What does not go together, or not with a model's ``most_tokens`` and a service's ``largest_beam``: a field
        and a reason each."""
        found = []
        longest = most_tokens if self.max_tokens is None else self.max_tokens
        if longest > most_tokens:
            found.append(("max_tokens", f"is {longest}; the limit is {most_tokens}"))
        elif self.min_tokens > longest:
            of = "" if self.max_tokens is None else "max_tokens, "
            found.append(("min_tokens", f"is {self.min_tokens}; the limit is {of}{longest}"))
        if self.beam_size > largest_beam:
            limit = f"the limit is {largest_beam}, the lesser of the service's settings max_beam and rows"
            found.append(("beam_size", f"is {self.beam_size}; {limit}"))
        elif self.sampling and self.beam_size > 1:
            found.append(("sampling", f"takes a beam_size of 1, not {self.beam_size}: leave out one of the two"))
        if self.alternatives > self.beam_size:
            limit = f"the limit is beam_size, {self.beam_size}: widen the beam or ask for fewer"
            found.append(("alternatives", f"is {self.alternatives}; {limit}"))
        return found

    def reseeded(self, number: int) -> "TranslateOptions":
        """The same with another seed, ``number`` further."""
        if not self.sampling:
            return self
        seed = (self.sampling.seed + number) % 2**63
        return self.model_copy(update={"sampling": self.sampling.model_copy(update={"seed": seed})})

    def decoding(self, limit: int, prefix: tuple[int, ...], stream: int) -> Decoding:
        """The engine's settings for the sentence of number ``stream``, which writes ``limit`` tokens at most."""
        drawn = None
        if asked := self.sampling:
            drawn = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.seed, stream)
        return Decoding(
            max_tokens=limit,
            min_tokens=self.min_tokens,
            beam_size=self.beam_size,
            # Some of them may be spelt alike, and then others take their places.
            alternatives=self.beam_size if self.alternatives > 1 else 1,
            length_penalty=self.length_penalty,
            no_repeat_ngram=self.no_repeat_ngram,
            prefix=prefix,
            sampling=drawn,
        )


GREEDY = TranslateOptions()
