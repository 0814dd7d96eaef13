"""BLEU and chrF of translations, by origin, by length and in total; and how many are degenerate."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from model.checkpoint import Checkpoint
from model.pairs import Pair
from model.tokenizer import normalise
from model.translate import translate

LENGTHS = (8, 16, 32)
"""Words of a source up to which a part by length goes."""


Kind = Literal["origin", "length", "total"]


@dataclass(frozen=True)
class Score:
    """Scores of a part of the pairs."""

    part: str
    """An origin, a range of words of the source, or all."""
    by: Kind
    """What made it a part."""
    pairs: int
    bleu: float
    chrf: float
    degenerate: float
    """Share of translations that `degenerate` finds."""


def score(pairs: Sequence[Pair], written: Sequence[str]) -> list[Score]:
    """sacrebleu's BLEU and chrF with their default signatures: by origin, by length, and in ``total`` (last)."""
    origins, lengths = defaultdict(list), defaultdict(list)
    for index, pair in enumerate(pairs):
        origins[pair.origin].append(index)
        lengths[bisect_left(LENGTHS, len(pair.source.split()))].append(index)
    return [
        *(_score(origin, "origin", pairs, written, indices) for origin, indices in sorted(origins.items())),
        *(_score(_words(place), "length", pairs, written, indices) for place, indices in sorted(lengths.items())),
        _score("total", "total", pairs, written, range(len(pairs))),
    ]


def _words(place: int) -> str:
    """The name of a part by length."""
    if place == 0:
        return f"up to {LENGTHS[0]} words"
    least = LENGTHS[place - 1] + 1
    return f"{least} to {LENGTHS[place]} words" if place < len(LENGTHS) else f"{least} words or more"


def _score(part: str, by: Kind, pairs: Sequence[Pair], written: Sequence[str], indices: Sequence[int]) -> Score:
    hypotheses, references = [written[index] for index in indices], [[pairs[index].target for index in indices]]
    bleu, chrf = sacrebleu.corpus_bleu(hypotheses, references), sacrebleu.corpus_chrf(hypotheses, references)
    lost = sum(degenerate(pairs[index].source, written[index]) for index in indices)
    return Score(part, by, len(indices), round(bleu.score, 2), round(chrf.score, 2), round(lost / len(indices), 4))


def confidence(pairs: Sequence[Pair], written: Sequence[str], scores: Sequence[float]) -> float | None:
    """How well ``scores`` foretell how good each translation is: Spearman's correlation with its chrF, -1 to 1.

    None when all are equally good, or equally sure.
    """
    quality = [sacrebleu.sentence_chrf(text, [pair.target]).score for pair, text in zip(pairs, written, strict=True)]
    if len(set(scores)) < 2 or len(set(quality)) < 2:
        return None
    return float(np.corrcoef(_ranks(scores), _ranks(quality))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The place of each among all; equal values share the mean of their places."""
    _, kinds, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[kinds]


_ORDINARY = re.compile(r"[^\W\d_]+")


def degenerate(source: str, written: str) -> bool:
    """Whether a translation says four words in a row three times or more, or is its source.

    Unless that has fewer than four ordinary words, of letters only: names and commands stay as they are.
    """
    words = written.split()
    runs = Counter(tuple(words[place : place + 4]) for place in range(len(words) - 3))
    ordinary = [word for word in source.split() if _ORDINARY.fullmatch(word.strip(".,:;!?"))]
    return max(runs.values(), default=0) >= 3 or (normalise(written) == normalise(source) and len(ordinary) >= 4)


def translations(
    loaded: Checkpoint,
    texts: Sequence[str],
    language: str,
    console: Console,
    beam_size: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Translations of ``texts`` into ``language`` in PyTorch, with a progress bar on ``console``."""
    written = [""] * len(texts)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found = translate(loaded.model, loaded.tokenizer, list(texts), language, beam_size, length_penalty)
        for index, text in progress.track(found, total=len(texts), description=f"translating into {language}"):
            written[index] = text
    return written
