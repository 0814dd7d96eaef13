"""The sentences of the checks on a card, and the engine that translates them."""

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from export.bundle import Manifest
from model.tokenizer import Tokenizer
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import TranslationJob, translation
from serving.engine.search import Hypothesis
from serving.runtime.interface import Runtime
from tests.gpu.devices import settings_on

ROOT = Path(__file__).resolve().parents[2]
NEAR_TIE = 0.02
"""In nats: `export.agreement.NEAR_TIE`, which cannot be read without torch."""
PATIENCE = 600.0
"""Seconds after which a translation counts as hung."""


def texts() -> list[tuple[str, str]]:
    """The project's own sentences, each with the language that it is to be translated into; none twice."""
    natural, german = (
        [line.split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        for path in (ROOT / "model" / "pretrained" / name for name in ("natural.tsv", "natural-de.tsv"))
    )
    english = [text for text, _ in natural]
    for path in (ROOT / "loadtest" / "sentences.txt", ROOT / "export" / "sentences.txt"):
        english += path.read_text(encoding="utf-8").splitlines()
    both = [(text, "de") for text in english]
    both += [(text, "en") for text in (*(text for text, _ in german), *(text for _, text in natural))]
    return list(dict.fromkeys(both))


def sources(folder: Path, manifest: Manifest, count: int) -> list[list[int]]:
    """``count`` sources for the bundle in ``folder``, of both its directions, of all lengths up to what it takes."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    targets = {target for _, target in manifest.pairs}
    most = manifest.limits.source_tokens
    found = [tokenizer.source(text, target)[:most] for text, target in texts() if target in targets]
    # Spread over all, so that fewer are of the same kinds.
    return [found[index * len(found) // count] for index in range(count)] if count < len(found) else found


def joined(folder: Path, manifest: Manifest, count: int, generator: random.Random) -> list[list[int]]:
    """``count`` sources of several sentences each, of all lengths up to what the bundle in ``folder`` takes."""
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    most = manifest.limits.source_tokens
    by_target = {target: [text for text, other in texts() if other == target] for _, target in manifest.pairs}
    found = []
    for _ in range(count):
        target, wanted = generator.choice(sorted(by_target)), generator.randint(2, most)
        source: list[int] = []
        several: list[str] = []
        while len(source) < wanted:
            several.append(generator.choice(by_target[target]))
            source = tokenizer.source(" ".join(several), target)
        found.append([*source[: wanted - 1], source[-1]])  # the end token stays
    return found


class Translator:
    """An engine over a runtime, for searches of ``beam_size``; one sentence may be in any company."""

    def __init__(self, runtime: Runtime, rows: int = 256, beam_size: int = 1, device: str = "cuda") -> None:
        self.model, self.beam_size = runtime.manifest.model, beam_size
        self._most = runtime.manifest.limits.target_tokens
        self._engine = Engine(runtime, runtime.batch(rows), settings_on(device).encode_tokens, sys.maxsize, rows)

    def company(self, sources: Sequence[list[int]], prefixes: Sequence[tuple[int, ...]] = ()) -> list[Hypothesis]:
        """The best hypothesis for each of ``sources``, all at once.

        With ``prefixes`` only these are read, and their log-probabilities are what is wanted. Of one as long as a
        translation can be, the last token is not: the model reads none.
        """
        jobs = [self._job(source, prefixes[index] if prefixes else ()) for index, source in enumerate(sources)]
        self._engine.submit(jobs)
        return [job.future.result(PATIENCE).hypotheses[0] for job in jobs]

    def alone(self, sources: Sequence[list[int]]) -> list[Hypothesis]:
        """The same, one after the other."""
        return [hypothesis for source in sources for hypothesis in self.company([source])]

    def _job(self, source: list[int], prefix: tuple[int, ...]) -> TranslationJob:
        prefix = prefix[: self._most - 1]
        most = len(prefix) or min(self._most, self.model.default_limit(len(source)))
        decoding = Decoding(most, beam_size=1 if prefix else self.beam_size, prefix=prefix)
        return translation(source, decoding, time.monotonic() + PATIENCE)

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.stop()
