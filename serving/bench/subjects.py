"""What is translated: a model, written down for every engine, and the sentences it is given."""

import gzip
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.bundle import MANIFEST, CacheSpec, Limits, Manifest, Provenance
from export.exporter import Precision, calibration, write_graphs
from export.quantize import calibrate, quantized
from model import checkpoint
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.tokenizer import LANGUAGES
from model.transformer import Transformer
from model.translate import search
from serving.bench.contestants import CHECKPOINT, PEER
from serving.engine.decoding import Decoding

PAPER = "paper"
"""The paper's shape, with random weights."""
FIXED_TOKENS = 24
"""Source and target tokens of a sentence for the paper's shape, whose random weights end nothing on their own."""


@dataclass(frozen=True)
class Subject:
    """A model with its sentences, ready for every engine."""

    name: str
    folder: Path
    config: ModelConfig
    sources: list[list[int]]
    fixed: int | None = None
    """Tokens every translation has; None: as many as it takes to the end token."""

    def batches(self, rows: int) -> list[list[list[int]]]:
        """What one measurement translates, ``rows`` sentences at a time: the same sentences whatever ``rows`` is.

        Of a fixed length, where every batch is like the first, only that one.
        """
        whole = [self.sources[begin : begin + rows] for begin in range(0, len(self.sources), rows)]
        return whole[:1] if self.fixed else [batch for batch in whole if len(batch) == rows]

    def decoding(self, sources: list[list[int]], beam_size: int) -> Decoding:
        """The search for a batch. CTranslate2 takes one limit a batch, so everybody gets that of the longest source."""
        if self.fixed:
            return Decoding(max_tokens=self.fixed, min_tokens=self.fixed, beam_size=beam_size)
        return Decoding(max_tokens=self.config.default_limit(max(map(len, sources))), beam_size=beam_size)


def prepare(name: str, folder: Path, engines: Collection[str], data: Path, sentences: int) -> Subject:
    """Write the model ``name`` ("paper", a checkpoint that ships, or a folder) into ``folder`` for ``engines``.

    ``data`` is where the sentences of a trained model come from. Raises CheckpointError, OSError, ValueError.
    """
    folder.mkdir(parents=True)
    if name == PAPER:
        torch.manual_seed(0)
        model = Transformer(ModelConfig(vocabulary=32_000, dropout=0.0)).eval()
        random = np.random.default_rng(0)
        # Token ids without the special ones.
        sources = random.integers(4, model.config.vocabulary, (sentences, FIXED_TOKENS)).tolist()
        subject = Subject(name, folder, model.config, sources, FIXED_TOKENS)
        pairs = [(source, source) for source in sources[:8]]
    else:
        loaded = checkpoint.load(checkpoint.locate(name))
        model = loaded.model
        subject = Subject(name, folder, model.config, _sentences(loaded, data, sentences))
        pairs = calibration(loaded) if "dragoman" in engines else []
    if "pytorch" in engines:
        torch.save(model, folder / CHECKPOINT)
    if "ctranslate2" in engines:
        from serving.bench.peer import convert

        convert(model, folder / PEER)
    if "dragoman" in engines:
        write_bundle(model, folder / "fp32", "fp32")
        write_bundle(quantized(model, calibrate(model, pairs)), folder / "int8", "int8")
    return subject


def read_lines(path: Path) -> list[str]:
    """The first tab-separated column of a text file (plain or .gz), without blank lines; OSError, ValueError."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            first = [line.decode().rstrip("\n").split("\t")[0] for line in lines]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
    return [text for text in first if text.strip()]


def _sentences(loaded: Checkpoint, data: Path, count: int) -> list[list[int]]:
    """Source ids of the first ``count`` lines whose greedy translation ends before its limit.

    One that does not would go on alone when all others are done, and measure where the limits stand.
    """
    model, language = loaded.model, loaded.config.pairs[0][1]
    ids = (loaded.tokenizer.source(text, language) for text in read_lines(data))
    fitting = [source for source in ids if len(source) <= model.config.max_positions]
    found: list[list[int]] = []
    for chunk in _chunks(fitting, min(count, 32)):
        ending = {index for index, hypothesis in search(model, chunk) if hypothesis.finished}
        found += [source for index, source in enumerate(chunk) if index in ending]
        if len(found) >= count:
            return found[:count]
    raise ValueError(f"{data}: {count} sentences are needed and {len(found)} can be translated to their end")


def _chunks(items: list[list[int]], size: int) -> Iterable[list[list[int]]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def write_bundle(model: Transformer, folder: Path, precision: Precision) -> None:
    """The graphs of ``model``, which has been quantised or not, and a manifest: a bundle less tokenizer and gate."""
    folder.mkdir()
    positions = model.config.max_positions
    manifest = Manifest(
        name="bench",
        pairs=(LANGUAGES,),
        languages={language: number for number, language in enumerate(LANGUAGES, 4)},
        model=model.config,
        precision=precision,
        attention="fused",
        limits=Limits(source_tokens=positions, target_tokens=positions),
        cache=CacheSpec.of(precision),
        quantisation=None,
        files={},
        graphs=write_graphs(model, folder, "fused"),
        provenance=Provenance(checkpoint_sha256="", versions={}),
        parity=None,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
