"""How one sentence is to be decoded: the settings of a search, for the engine and for whoever asks it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Draw each token instead of taking the likeliest.

    The ``top_k`` likeliest tokens are raised to ``temperature`` (log-probabilities divided by it) and made to sum to
    one; of these, likeliest first, the fewest whose sum reaches ``top_p`` stay and are made to sum to one again. The
    draw inverts their cumulated sum at a uniform number in [0, 1): the next of a Philox generator with the key
    ``(seed, stream)``.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0
    stream: int = 0
    """Tells apart the sentences of a request, which share its seed."""


@dataclass(frozen=True)
class Decoding:
    """The settings of one sentence's search. Tokens are counted with the end token, without the start token.

    Log-probabilities are always those of the model's whole softmax: what is forbidden here is left out of the choice,
    and nothing is made to sum to one again (sampling draws from what is left, but reports the model's numbers).
    """

    max_tokens: int
    min_tokens: int = 0
    """The end token is forbidden before this many tokens."""
    beam_size: int = 1
    """1 is greedy search (or sampling). The beam stops when this many hypotheses have ended."""
    alternatives: int = 1
    """How many hypotheses to return, best first; at most ``beam_size``."""
    length_penalty: float = 1.0
    """Hypotheses are ranked by score / tokens ** length_penalty."""
    no_repeat_ngram: int = 0
    """A token that would complete an n-gram of this size a second time is forbidden, the end token never; 0 is off."""
    prefix: tuple[int, ...] = ()
    """The target's first tokens, given instead of searched for; scored like the others, subject to no rule."""
    sampling: Sampling | None = None
    """Only with a beam of 1."""
