"""What the users send: sentences, one a line, and requests made of them."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.request import Request

SENTENCES = Path(__file__).with_name("sentences.txt")
"""The project's own: 300 of 1 to 112 words, awkward ones among them."""
INTERACTIVE, BULK = "interactive", "bulk"
BULK_TEXTS = 100
"""Texts in a request of a bulk job."""


def read_sentences(path: Path) -> list[str]:
    """The lines of ``path`` that are not blank; ValueError when there are none."""
    sentences = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not sentences:
        raise ValueError(f"{path} holds no sentences")
    return sentences


def interactive(sentences: Sequence[str], times: Sequence[float], seed: int) -> list[Request]:
    """One sentence, drawn at random, to be translated at each of ``times``."""
    chance = random.Random(f"{INTERACTIVE}/{seed}")
    return [Request(due, INTERACTIVE, "/v1/translate", {"text": chance.choice(sentences)}) for due in times]


def bulk(sentences: Sequence[str], seed: int) -> Iterator[Request]:
    """Long lists to be translated one after another, without end."""
    chance = random.Random(f"{BULK}/{seed}")
    while True:
        yield Request(0.0, BULK, "/v1/translate", {"text": [chance.choice(sentences) for _ in range(BULK_TEXTS)]})
