"""Greedy and beam search, slow and obvious: every step reads the whole target again, nothing is cached.

This is the oracle that the serving engine is tested against.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    model: Transformer, source: Tensor, beam_size: int, length_penalty: float = 1.0, limit: int | None = None
) -> list[Hypothesis]:
    """The best hypotheses of one sentence ``source`` ``[length]``, best first, at most ``beam_size`` of them.

    Hypotheses are ranked by score / tokens ** ``length_penalty``. The search stops as soon as ``beam_size`` of them
    have ended, or at ``limit`` tokens, where those still open fill the places left.
    """
    limit = limit or model.config.default_limit(len(source))
    encoded = model.encode(source[None], torch.tensor([len(source)], device=source.device))
    live = [Hypothesis([], [], finished=False)]
    ended: list[Hypothesis] = []
    for _ in range(limit):
        prefixes = torch.tensor([[START, *hypothesis.tokens] for hypothesis in live], device=source.device)
        repeated = Encoded(encoded.memory.expand(len(live), -1, -1), encoded.visible, [])
        states = model.decode(prefixes, repeated).states[:, -1]
        step = model.projection(states).float().log_softmax(-1)
        totals = step.double() + torch.tensor([[h.score] for h in live], dtype=torch.float64, device=step.device)
        # Twice the beam: even if every first choice ends here, as many open hypotheses go on.
        candidates = totals.flatten().topk(min(2 * beam_size, totals.numel())).indices.tolist()
        following: list[Hypothesis] = []
        for row, token in (divmod(candidate, step.shape[1]) for candidate in candidates):
            longer = Hypothesis(
                [*live[row].tokens, token], [*live[row].log_probabilities, float(step[row, token])], token == END
            )
            (ended if longer.finished else following).append(longer)
            if len(ended) == beam_size or len(following) == beam_size:
                break
        live = following
        if len(ended) == beam_size:
            break
    ended += live[: beam_size - len(ended)]
    return sorted(ended, key=lambda hypothesis: -hypothesis.score / len(hypothesis.tokens) ** length_penalty)
