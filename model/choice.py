"""The choice of the next token: which tokens are forbidden, and how one of the others is drawn. No torch.

The reference search and the serving engine share these, so that the same numbers lead both to the same tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from model.tokenizer import END


def forbidden(tokens: Sequence[int], min_tokens: int, no_repeat_ngram: int) -> set[int]:
    """What may not follow ``tokens``, all that is written so far without the start token.

    The end token, as long as it would be a sentence's last of fewer than ``min_tokens``; and every other token that
    would complete an n-gram of ``no_repeat_ngram`` tokens that ``tokens`` already holds (0 is off).
    """
    banned = {END} if len(tokens) + 1 < min_tokens else set()
    if no_repeat_ngram:
        before = no_repeat_ngram - 1
        last = tokens[len(tokens) - before :]
        for place in range(before, len(tokens)):
            if tokens[place - before : place] == last and tokens[place] != END:
                banned.add(tokens[place])
    return banned


def generator(seed: int, stream: int) -> np.random.Generator:
    """The source of one sentence's uniform numbers: Philox with the key (``seed``, ``stream``), each below 2**64."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def draw(log_probabilities: ArrayLike, temperature: float, top_p: float, uniform: float) -> int:
    """Which of the candidates ``log_probabilities`` ``[candidates]``, likeliest first, at least one, is drawn.

    Their probabilities, log-probabilities divided by ``temperature`` (above 0), are made to sum to one. The fewest,
    likeliest first, whose sum reaches ``top_p`` stay and are made to sum to one again. The draw is the first of these
    whose cumulated sum is above ``uniform``, a number in [0, 1). All in float64.
    """
    logarithms = np.asarray(log_probabilities, dtype=np.float64)
    # Relative to the likeliest, which no temperature can make overflow or vanish.
    cumulated = np.cumsum(np.exp((logarithms - logarithms[0]) / temperature))
    nucleus = cumulated[: np.searchsorted(cumulated / cumulated[-1], top_p) + 1]
    # The last is exactly 1 and so above every uniform number.
    return int(np.searchsorted(nucleus / nucleus[-1], uniform, side="right"))
