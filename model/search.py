"""Greedy and beam search and sampling, slow and obvious: every step reads the whole target again, nothing is cached.

This is the oracle that the serving engine is tested against.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.choice import draw, forbidden, generator
from model.tokenizer import END, START
from model.transformer import Encoded, Transformer


@dataclass(frozen=True)
class Hypothesis:
    """One translation as token ids, without the start token."""

    tokens: list[int]
    """Ends with the end token when ``finished``."""
    log_probabilities: list[float]
    """Natural logarithms, one a token."""
    finished: bool
    """False when the search ran into its limit first."""

    @property
    def score(self) -> float:
        """The hypothesis' log-probability: the sum over its tokens."""
        return sum(self.log_probabilities)


@torch.inference_mode()
def greedy(model: Transformer, source: Tensor, lengths: Tensor, limits: list[int] | None = None) -> list[Hypothesis]:
    """The likeliest token at every step, for each row of ``source`` ``[batch, length]`` with ``lengths`` ``[batch]``.

    ``limits`` holds each row's most tokens (`default_limit`).
    """
    limits = limits or [model.config.default_limit(int(length)) for length in lengths]
    encoded = model.encode(source, lengths)
    target = torch.full((len(source), 1), START, device=source.device)
    tokens: list[list[int]] = [[] for _ in limits]
    scores: list[list[float]] = [[] for _ in limits]
    for step in range(max(limits)):
        states = model.decode(target, encoded).states[:, -1]
        best, token = model.projection(states).float().log_softmax(-1).max(-1)
        for row, limit in enumerate(limits):
            if step < limit and END not in tokens[row]:
                tokens[row].append(int(token[row]))
                scores[row].append(float(best[row]))
        if all(END in row or len(row) == limit for row, limit in zip(tokens, limits, strict=True)):
            break
        target = torch.cat((target, token[:, None]), dim=1)
    return [Hypothesis(t, s, END in t) for t, s in zip(tokens, scores, strict=True)]


@torch.inference_mode()
def beam(
    model: Transformer,
    source: Tensor,
    *,
    max_tokens: int,
    min_tokens: int = 0,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    prefix: tuple[int, ...] = (),
) -> list[Hypothesis]:
    """The best hypotheses of one sentence ``source`` ``[length]``, best first, at most ``beam_size`` of them.

    Hypotheses are ranked by score / tokens ** ``length_penalty``. The search stops as soon as ``beam_size`` of them
    have ended, or at ``max_tokens``, where those still open fill the places left. With a beam of 1 it is greedy search.

    Each begins with the tokens of ``prefix`` (no end token among them), which count and are scored like the others but
    are subject to no rule; what may follow is decided by ``min_tokens`` and ``no_repeat_ngram`` (`forbidden`).
    """
    encoded = _encode(model, source)
    live = [_forced(model, encoded, prefix[:max_tokens])]
    ended: list[Hypothesis] = []
    while live and len(ended) < beam_size and len(live[0].tokens) < max_tokens:
        step = _next_log_probabilities(model, encoded, live)
        totals = step + np.array([[hypothesis.score] for hypothesis in live])
        for row, hypothesis in enumerate(live):
            totals[row, list(forbidden(hypothesis.tokens, min_tokens, no_repeat_ngram))] = -np.inf
        # Twice the beam: even if every first choice ends here, as many open hypotheses go on.
        candidates = _likeliest(totals.ravel(), 2 * beam_size)
        following: list[Hypothesis] = []
        for row, token in (divmod(candidate, step.shape[1]) for candidate in candidates):
            longer = _longer(live[row], token, step[row])
            (ended if longer.finished else following).append(longer)
            if len(ended) == beam_size or len(following) == beam_size:
                break
        live = following
    ended += live[: beam_size - len(ended)]
    return sorted(ended, key=lambda hypothesis: -hypothesis.score / len(hypothesis.tokens) ** length_penalty)


@torch.inference_mode()
def sample(
    model: Transformer,
    source: Tensor,
    *,
    max_tokens: int,
    min_tokens: int = 0,
    no_repeat_ngram: int = 0,
    prefix: tuple[int, ...] = (),
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    stream: int = 0,
) -> Hypothesis:
    """A translation of one sentence ``source`` ``[length]`` drawn token by token; the same for the same arguments.

    Each token is drawn (`draw`) from the ``top_k`` likeliest that are allowed, with one number of the `generator` of
    ``seed`` and ``stream``. The rules are those of `beam`; the tokens of ``prefix`` take no number.
    """
    encoded = _encode(model, source)
    uniforms = generator(seed, stream)
    written = _forced(model, encoded, prefix[:max_tokens])
    while not written.finished and len(written.tokens) < max_tokens:
        (step,) = _next_log_probabilities(model, encoded, [written])
        allowed = step.copy()
        allowed[list(forbidden(written.tokens, min_tokens, no_repeat_ngram))] = -np.inf
        candidates = _likeliest(allowed, top_k)
        index = draw(step[candidates], temperature, top_p, uniforms.random())
        written = _longer(written, candidates[index], step)
    return written


def _encode(model: Transformer, source: Tensor) -> Encoded:
    return model.encode(source[None], torch.tensor([len(source)], device=source.device))


def _next_log_probabilities(model: Transformer, encoded: Encoded, hypotheses: list[Hypothesis]) -> NDArray[np.float64]:
    """``[hypotheses, vocabulary]``; the hypotheses are of one length."""
    target = torch.tensor([[START, *hypothesis.tokens] for hypothesis in hypotheses], device=encoded.memory.device)
    repeated = Encoded(encoded.memory.expand(len(hypotheses), -1, -1), encoded.visible, [])
    states = model.decode(target, repeated).states[:, -1]
    return model.projection(states).float().log_softmax(-1).double().cpu().numpy()


def _likeliest(log_probabilities: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the ``count`` greatest, greatest first and of equals the first, without those that are -∞."""
    order = np.argsort(-log_probabilities, kind="stable")[:count]
    return [int(index) for index in order if log_probabilities[index] > -np.inf]


def _longer(hypothesis: Hypothesis, token: int, step: NDArray[np.float64]) -> Hypothesis:
    """``hypothesis`` and then ``token``; ``step`` ``[vocabulary]`` holds the log-probabilities of what may follow."""
    return Hypothesis(
        [*hypothesis.tokens, token], [*hypothesis.log_probabilities, float(step[token])], finished=token == END
    )


def _forced(model: Transformer, encoded: Encoded, prefix: tuple[int, ...]) -> Hypothesis:
    hypothesis = Hypothesis([], [], finished=False)
    for token in prefix:
        (step,) = _next_log_probabilities(model, encoded, [hypothesis])
        hypothesis = _longer(hypothesis, token, step)
    return hypothesis
