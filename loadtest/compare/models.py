"""The models that both services serve, and what is asked of them."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loadtest.payloads import BULK, BULK_TEXTS, INTERACTIVE
from loadtest.request import Request

PAPER, SMALL = "paper", "en-de-small"
"""The paper's shape with random weights, and the small model that ships."""
DESCRIPTION = "model.json"


class Line(NamedTuple):
    """A sentence to be translated."""

    text: str
    tokens: int
    """Target tokens of the small model's translation, the end token included."""


@dataclass(frozen=True)
class Model:
    """A model ready to be served by either, in a folder that `loadtest.compare.prepare` has written."""

    name: str
    folder: Path
    language: int
    """The target language's token."""
    fixed: bool
    """Its weights are random and never end a sentence: a request says how long its translation is."""
    lines: list[Line]

    @property
    def mean_tokens(self) -> float:
        """Of a translation."""
        return sum(line.tokens for line in self.lines) / len(self.lines)

    @property
    def bundle(self) -> Path:
        """For this service."""
        return self.folder / "bundle"

    @property
    def peer(self) -> Path:
        """For CTranslate2."""
        return self.folder / "ctranslate2"

    @property
    def tokenizer(self) -> Path:
        """For both."""
        return self.bundle / "tokenizer.model"

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """The model in ``folder``; OSError when there is none."""
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        lines = [Line(*line) for line in found.pop("lines")]
        return cls(folder=folder, lines=lines, **found)

    def requests(self, beam_size: int, times: Sequence[float], seed: int) -> list[Request]:
        """A translation of one of the lines, drawn at random, due at each of ``times``."""
        chance, found = random.Random(seed), []
        for due in times:
            line = chance.choice(self.lines)
            body: dict[str, object] = {"text": line.text}
            if beam_size > 1:
                body["beam_size"] = beam_size
            if self.fixed:
                body |= {"min_tokens": line.tokens, "max_tokens": line.tokens}
            found.append(Request(due, INTERACTIVE, "/v1/translate", body, line.tokens))
        return found

    def bulk(self, seed: int) -> Iterator[Request]:
        """Long lists of the lines without end, for greedy search."""
        chance, tokens = random.Random(seed), round(self.mean_tokens)
        while True:
            body: dict[str, object] = {"text": [chance.choice(self.lines).text for _ in range(BULK_TEXTS)]}
            if self.fixed:
                body |= {"min_tokens": tokens, "max_tokens": tokens}
            yield Request(0.0, BULK, "/v1/translate", body, BULK_TEXTS * tokens)
