"""Whether one translation of a text is better than another, or only luckier: the paired bootstrap (Koehn, 2004)."""

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

SAMPLES = 1000
"""Random samples. Each draws as many pairs as there are, with repetition."""


class Comparison(NamedTuple):
    """One metric of two systems on the same pairs."""

    metric: str
    """BLEU or chrF."""
    score: float
    other: float
    """Of the system that is compared with."""
    p_value: float
    """How often chance alone would part the two as far: below 0.05 the difference counts as real."""


def compare(written: Sequence[str], others: Sequence[str], references: Sequence[str]) -> list[Comparison]:
    """``written`` against ``others``, translations of one text whose right ones are ``references``: BLEU, then chrF.

    Draws the same samples every time (sacrebleu's seed, 12345). ValueError when there are not as many of each.
    """
    if not len(written) == len(others) == len(references):
        counts = f"{len(written)} translations, {len(others)} to compare with, {len(references)} references"
        raise ValueError(f"{counts}: these three numbers must be equal")
    metrics = {"BLEU": BLEU(), "chrF": CHRF()}
    systems = [("other", list(others)), ("own", list(written))]
    _, scores = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=SAMPLES)()
    results = []
    for metric in metrics:
        other, own = next(values for name, values in scores.items() if name.lower().startswith(metric.lower()))
        # sacrebleu counts samples that part more than the whole does: of equals, none does, as if that were proof.
        p_value = 1.0 if own.score == other.score else float(own.p_value)
        results.append(Comparison(metric, round(own.score, 2), round(other.score, 2), round(p_value, 4)))
    return results
