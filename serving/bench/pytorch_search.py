"""Greedy and beam search of many sentences at a time, all on the device: the host reads nothing until it is over.

What a search knows of its sentences stays in one place while they move from batch to batch: it is indexed by sentence.
Rows without a sentence have the number of one that is over, `Search.nobody`.
"""

import numpy as np
import torch
from torch import Tensor

from model.tokenizer import END
from serving.engine.decoding import Decoding


class Search:
    """What the two kinds have in common: the tokens that were written, and who is done."""

    beam = 1

    def __init__(self, sentences: int, positions: int, device: torch.device) -> None:
        self.nobody = sentences
        self.written = torch.zeros(positions, sentences + 1, self.beam, dtype=torch.int64, device=device)
        self.done = torch.ones(sentences + 1, dtype=torch.bool, device=device)
        self.least = torch.zeros(1, dtype=torch.int64, device=device)
        """Tokens before which nothing may end."""
        self.unfinished = torch.zeros(1, dtype=torch.int64, device=device)
        """Sentences of the last step's batch that are not done."""

    def begin(self, sentences: int, decoding: Decoding) -> None:
        """Start on so many sentences."""
        self.done[:sentences] = False
        self.done[sentences:] = True
        self.least.fill_(decoding.min_tokens)

    def choose(self, logits: Tensor, position: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """The next tokens and the hypotheses that they continue, ``[sentences, beam]`` each.

        ``logits`` are ``[sentences, beam, vocabulary]``, ``position`` ``[1]``, ``sentence`` ``[sentences]``.
        """
        raise NotImplementedError

    def result(self, sentences: int, steps: int) -> list[list[int]]:
        """The best hypothesis of each after ``steps`` steps, on the host."""
        raise NotImplementedError

    def _forbid_end(self, logits: Tensor, position: Tensor) -> Tensor:
        end = torch.arange(logits.shape[-1], device=logits.device) == END
        return logits.masked_fill(end & (position + 1 < self.least), -torch.inf)


class Greedy(Search):
    """The likeliest token at every step."""

    def choose(self, logits: Tensor, position: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """See `Search`."""
        token = self._forbid_end(logits, position).argmax(-1)
        done = self.done[sentence] | (token[:, 0] == END)
        self.written[position, sentence] = token
        self.done[sentence] = done
        self.unfinished.copy_((~done).sum()[None])
        return token, torch.zeros_like(token)

    def result(self, sentences: int, steps: int) -> list[list[int]]:
        """See `Search`."""
        rows = self.written[:steps, :sentences, 0].T.tolist()
        return [row[: row.index(END) + 1] if END in row else row for row in rows]


class Beam(Search):
    """`model.search.beam`, by the same rules."""

    def __init__(self, sentences: int, positions: int, device: torch.device, beam: int) -> None:
        self.beam = beam
        super().__init__(sentences, positions, device)
        self.parents = torch.zeros_like(self.written)
        """The hypothesis that each of `written` continues."""
        self.scores = torch.zeros(sentences + 1, beam, dtype=torch.float64, device=device)
        """Sums of log-probabilities of the hypotheses that go on, best first."""
        self.ended = torch.zeros(sentences + 1, dtype=torch.int64, device=device)
        self.best = torch.zeros(sentences + 1, dtype=torch.float64, device=device)
        """The best that has ended: its score by its length, and where its end token follows upon which hypothesis."""
        self.best_place = torch.zeros(sentences + 1, 2, dtype=torch.int64, device=device)
        self.penalty = torch.ones(1, dtype=torch.float64, device=device)

    def begin(self, sentences: int, decoding: Decoding) -> None:
        """See `Search`."""
        super().begin(sentences, decoding)
        self.scores.fill_(-torch.inf)[:, 0] = 0.0
        self.ended.zero_()
        self.best.fill_(-torch.inf)
        self.penalty.fill_(decoding.length_penalty)

    def choose(self, logits: Tensor, position: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """See `Search`."""
        size = self.beam
        normaliser = logits.float().logsumexp(-1, keepdim=True)
        likely, tokens = self._forbid_end(logits, position).topk(2 * size)
        totals = self.scores[sentence][:, :, None] + (likely.float() - normaliser).double()
        totals, places = totals.flatten(1).topk(2 * size)
        tokens, parents = tokens.flatten(1).gather(1, places), places // (2 * size)
        is_end = tokens == END
        # A candidate is looked at unless enough have ended, or enough go on, before it.
        ended = self.ended[sentence]
        ends_before = ended[:, None] + is_end.cumsum(1) - is_end.long()
        others_before = (~is_end).cumsum(1) - (~is_end).long()
        looked_at = (ends_before < size) & (others_before < size) & ~self.done[sentence][:, None]
        self._note_ends(looked_at & is_end, totals, parents, position, sentence, ended)
        following = is_end.long().argsort(dim=1, stable=True)[:, :size]
        tokens, parents = tokens.gather(1, following), parents.gather(1, following)
        self.scores[sentence] = totals.gather(1, following)
        self.written[position, sentence] = tokens
        self.parents[position, sentence] = parents
        return tokens, parents

    def _note_ends(
        self, ends: Tensor, totals: Tensor, parents: Tensor, position: Tensor, sentence: Tensor, ended: Tensor
    ) -> None:
        """Note the candidates that are ``ends`` ``[sentences, candidates]``: all of one length, the best first."""
        first = ends.long().argmax(1, keepdim=True)
        score = totals.gather(1, first)[:, 0] / (position + 1) ** self.penalty
        better = ends.any(1) & (score > self.best[sentence])
        place = torch.stack((position.expand_as(sentence), parents.gather(1, first)[:, 0]), 1)
        self.best[sentence] = torch.where(better, score, self.best[sentence])
        self.best_place[sentence] = torch.where(better[:, None], place, self.best_place[sentence])
        ended = ended + ends.sum(1)
        done = self.done[sentence] | (ended >= self.beam)
        self.ended[sentence] = ended
        self.done[sentence] = done
        self.unfinished.copy_((~done).sum()[None])

    def result(self, sentences: int, steps: int) -> list[list[int]]:
        """See `Search`."""
        written = self.written[:steps, :sentences].cpu().numpy()
        parents = self.parents[:steps, :sentences].cpu().numpy()
        done, best = self.done[:sentences].cpu().numpy(), self.best[:sentences].cpu().numpy()
        end, hypothesis = self.best_place[:sentences].cpu().numpy().T
        # Of those that ran into their limit, the best that is open may be better than the best that has ended.
        open_score = self.scores[:sentences, 0].cpu().numpy() / steps ** float(self.penalty)
        is_open = ~done & (open_score > best)
        end, hypothesis = np.where(is_open, steps, end), np.where(is_open, 0, hypothesis)
        tokens = np.full((sentences, steps + 1), END)
        everybody = np.arange(sentences)
        for step in reversed(range(steps)):
            inside = step < end
            tokens[inside, step] = written[step, everybody, hypothesis][inside]
            hypothesis = np.where(inside, parents[step, everybody, hypothesis], hypothesis)
        lengths = np.where(is_open, steps, end + 1)
        return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
