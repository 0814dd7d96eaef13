"""What `model.search` makes of a request to the engine."""

from typing import Any

from torch import Tensor

from model import search
from model.transformer import Transformer
from serving.engine.decoding import Decoding


def expected(model: Transformer, source: Tensor, decoding: Decoding) -> list[search.Hypothesis]:
    """The hypotheses of ``source`` ``[length]``, best first."""
    rules: Any = {
        "max_tokens": decoding.max_tokens,
        "min_tokens": decoding.min_tokens,
        "no_repeat_ngram": decoding.no_repeat_ngram,
        "prefix": decoding.prefix,
    }
    if sampling := decoding.sampling:
        drawn = search.sample(
            model,
            source,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stream=sampling.stream,
            **rules,
        )
        return [drawn]
    found = search.beam(model, source, beam_size=decoding.beam_size, length_penalty=decoding.length_penalty, **rules)
    return found[: decoding.alternatives]
