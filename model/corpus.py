"""Pairs as token ids, in padded batches."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.pairs import Pair
from model.tokenizer import PADDING, START, Tokenizer

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Padded token ids, int64 once they reach the model."""

    source: Ids
    """``[rows, source]``"""
    source_lengths: Ids
    """``[rows]``"""
    target: Ids
    """``[rows, target]``: what the decoder reads, a start token first."""
    labels: Ids
    """``[rows, target]``: what it should predict there; padding where there is nothing."""


def pad(rows: Sequence[Sequence[int] | Ids]) -> Ids:
    """``[len(rows), longest]``, padded at the end."""
    padded = np.full((len(rows), max(map(len, rows))), PADDING, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


class Corpus:
    """Pairs as token ids, and how often each may appear in a pass over them."""

    def __init__(self, sources: list[Ids], targets: list[Ids], weights: NDArray[np.float32]) -> None:
        self.sources, self.targets, self.weights = sources, targets, weights
        lengths = [(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
        self.lengths = np.array(lengths, np.int32).reshape(-1, 2)

    @classmethod
    def encode(
        cls, pairs: list[Pair], tokenizer: Tokenizer, language: str, longest: int, weights: Mapping[str, float]
    ) -> "Corpus":
        """Tokenise ``pairs`` into ``language``; drop those empty or over ``longest`` tokens on a side.

        ``weights`` gives, by origin, how often a pair appears in one pass (1 unless named; fractions are chances).
        """
        sources, targets, kept = [], [], []
        for pair in pairs:
            source, target = tokenizer.source(pair.source, language), tokenizer.target(pair.target)
            if 2 < len(source) <= longest and 1 < len(target) <= longest:
                sources.append(np.array(source, np.int32))
                targets.append(np.array(target, np.int32))
                kept.append(weights.get(pair.origin, 1.0))
        return cls(sources, targets, np.array(kept, np.float32))

    @classmethod
    def join(cls, corpora: Sequence["Corpus"]) -> "Corpus":
        """Everything in ``corpora``, one after the other."""
        sources = [ids for corpus in corpora for ids in corpus.sources]
        targets = [ids for corpus in corpora for ids in corpus.targets]
        return cls(sources, targets, np.concatenate([corpus.weights for corpus in corpora]))

    def __len__(self) -> int:
        return len(self.sources)

    def digest(self) -> str:
        """SHA-256 of all it holds, in order."""
        arrays = (self.lengths, self.weights, *self.sources, *self.targets)
        found = hashlib.sha256()
        for array in arrays:
            found.update(array.tobytes())
        return found.hexdigest()

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The pairs at ``rows``, padded."""
        start = np.array([START], np.int32)
        labels = pad([self.targets[row] for row in rows])
        return Batch(
            source=pad([self.sources[row] for row in rows]),
            source_lengths=self.lengths[rows, 0],
            target=pad([np.concatenate((start, self.targets[row][:-1])) for row in rows]),
            labels=labels,
        )

    def plan(self, tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """One pass as lists of rows, at most ``tokens`` padded tokens (source and target) each, in random order.

        Pairs of like length share a batch, which keeps padding to a few per cent. The same arguments give the same
        plan.
        """
        random = np.random.default_rng((seed, epoch))
        times = np.floor(self.weights + random.random(len(self))).astype(np.int64)
        rows = np.repeat(np.arange(len(self)), times)
        # Random first, then by length: ties among equal lengths fall differently in every pass.
        random.shuffle(rows)
        source, target = self.lengths[rows].T
        rows = rows[np.lexsort((source, np.maximum(source, target) // 2))]
        batches, begin, widest = [], 0, (0, 0)
        for end, row in enumerate(rows):
            grown = (max(widest[0], self.lengths[row, 0]), max(widest[1], self.lengths[row, 1]))
            if end > begin and sum(grown) * (end - begin + 1) > tokens:
                batches.append(rows[begin:end])
                begin, grown = end, tuple(self.lengths[row])
            widest = grown
        if begin < len(rows):
            batches.append(rows[begin:])
        random.shuffle(batches)
        return batches

    def batches(self, tokens: int, seed: int, first: int = 0) -> Iterator[Batch]:
        """Batches without end, pass after pass, from the ``first``-th on; ValueError if no pair can ever appear."""
        if not self.weights.any():
            raise ValueError("no pair to train on: all are left out or weigh 0")
        epoch, done = 0, 0
        while True:
            plan = self.plan(tokens, seed, epoch)
            for rows in plan[max(0, first - done) :]:
                yield self.batch(rows)
            epoch, done = epoch + 1, done + len(plan)
