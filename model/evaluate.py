"""BLEU and chrF of translations, in total and by origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sacrebleu
from rich.console import Console
from rich.progress import Progress

from model.corpus import Pair


@dataclass(frozen=True)
class Score:
    """Scores of the pairs of one origin."""

    origin: str
    pairs: int
    bleu: float
    chrf: float


def score(pairs: Sequence[Pair], written: Sequence[str]) -> list[Score]:
    """sacrebleu's BLEU and chrF with their default signatures, by origin and in ``total`` (last)."""
    places: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        places.setdefault(pair.origin, []).append(index)
    rows = [_score(origin, pairs, written, indices) for origin, indices in sorted(places.items())]
    return [*rows, _score("total", pairs, written, list(range(len(pairs))))]


def _score(origin: str, pairs: Sequence[Pair], written: Sequence[str], indices: list[int]) -> Score:
    hypotheses, references = [written[index] for index in indices], [[pairs[index].target for index in indices]]
    bleu, chrf = sacrebleu.corpus_bleu(hypotheses, references), sacrebleu.corpus_chrf(hypotheses, references)
    return Score(origin, len(indices), round(bleu.score, 2), round(chrf.score, 2))


def translations(
    checkpoint: Path, pairs: Sequence[Pair], console: Console, beam_size: int = 1, length_penalty: float = 1.0
) -> list[str]:
    """Translations of ``pairs`` by the checkpoint in PyTorch, with a progress bar on ``console``."""
    from model.checkpoint import load
    from model.translate import translate

    loaded = load(checkpoint)
    written = [""] * len(pairs)
    with Progress(console=console, transient=True) as progress:
        texts = [pair.source for pair in pairs]
        language = loaded.config.pairs[0][1]
        found = translate(loaded.model, loaded.tokenizer, texts, language, beam_size, length_penalty)
        for index, text in progress.track(found, total=len(pairs), description="translating"):
            written[index] = text
    return written
