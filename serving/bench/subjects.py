"""What is translated: a model, written down for every engine, and the sentences it is given."""

import copy
import gzip
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.bundle import MANIFEST, CacheSpec, Limits, Manifest, Provenance
from export.exporter import Precision, calibration, write_graphs
from export.functions import Bodies
from export.quantize import calibrate, quantized
from model import checkpoint
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.tokenizer import LANGUAGES
from model.transformer import Transformer
from model.translate import search
from serving.bench.contestants import CHECKPOINT, PEER, Entrant
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

    def batches(self, rows: int, most: int | None = None) -> list[list[list[int]]]:
        """What one measurement translates, ``rows`` sentences at a time: the same sentences whatever ``rows`` is.

        Of a fixed length, where every batch is like the first, only that one. ``most`` batches at most, if given.
        """
        whole = [self.sources[begin : begin + rows] for begin in range(0, len(self.sources), rows)]
        return whole[:1] if self.fixed else [batch for batch in whole[:most] if len(batch) == rows]

    def decoding(self, sources: list[list[int]], beam_size: int) -> Decoding:
        """The search for a batch. CTranslate2 takes one limit a batch, so everybody gets that of the longest source."""
        if self.fixed:
            return Decoding(max_tokens=self.fixed, min_tokens=self.fixed, beam_size=beam_size)
        return Decoding(max_tokens=self.config.default_limit(max(map(len, sources))), beam_size=beam_size)


def prepare(
    name: str, folder: Path, entrants: Collection[Entrant], data: Path, sentences: int, device: str = "cpu"
) -> Subject:
    """Write the model ``name`` ("paper", a checkpoint that ships, or a folder) into ``folder`` for ``entrants``.

    ``data`` is where the sentences of a trained model come from. Raises CheckpointError, OSError, ValueError.
    """
    folder.mkdir(parents=True)
    engines = {entrant.engine for entrant in entrants}
    bundles = [entrant.precision for entrant in entrants if entrant.engine == "dragoman"]
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
        subject = Subject(name, folder, model.config, _sentences(loaded, data, sentences, device))
        pairs = calibration(loaded) if "int8" in bundles else []
    if "pytorch" in engines:
        torch.save(model, folder / CHECKPOINT)
    if "ctranslate2" in engines:
        try:
            from serving.bench.peer import convert
        except ImportError:
            pass  # its own process will fail at the same, and say so
        else:
            convert(model, folder / PEER)
    for bundle in bundles:
        match bundle:
            case "int8":
                write_bundle(quantized(model, calibrate(model, pairs)), folder / bundle, "int8")
            case "fp32":
                # On a GPU the fused operator has no kernel in fp32.
                write_bundle(model, folder / bundle, "fp32", "fused" if device == "cpu" else "standard")
            case _:
                bodies: Bodies = "standard" if bundle.endswith("standard") else "fused"
                write_bundle(copy.deepcopy(model).half(), folder / bundle, "fp16", bodies)
    return subject


def read_lines(path: Path) -> list[str]:
    """The first tab-separated column of a text file (plain or .gz), without blank lines; OSError, ValueError."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            first = [line.decode().rstrip("\n").split("\t")[0] for line in lines]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
    return [text for text in first if text.strip()]


def _sentences(loaded: Checkpoint, data: Path, count: int, device: str) -> list[list[int]]:
    """Source ids of the first ``count`` lines whose greedy translation ends before its limit, found on ``device``.

    One that does not would go on alone when all others are done, and measure where the limits stand.
    """
    # Where PyTorch finds no GPU, engines may find one.
    model = loaded.model.to(device if device == "cpu" or torch.cuda.is_available() else "cpu")
    language = loaded.config.pairs[0][1]
    ids = (loaded.tokenizer.source(text, language) for text in read_lines(data))
    fitting = [source for source in ids if len(source) <= model.config.max_positions]
    found: list[list[int]] = []
    for chunk in _chunks(fitting, min(count, 32)):
        ending = {index for index, hypothesis in search(model, chunk) if hypothesis.finished}
        found += [source for index, source in enumerate(chunk) if index in ending]
        if len(found) >= count:
            break
    model.to("cpu")
    if len(found) < count:
        raise ValueError(f"{data}: {count} sentences are needed and {len(found)} can be translated to their end")
    return found[:count]


def _chunks(items: list[list[int]], size: int) -> Iterable[list[list[int]]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def write_bundle(model: Transformer, folder: Path, precision: Precision, attention: Bodies = "fused") -> None:
    """The graphs of ``model``, whose weights are in ``precision``, and a manifest: a bundle less tokenizer and gate."""
    folder.mkdir()
    positions = model.config.max_positions
    manifest = Manifest(
        name="bench",
        pairs=(LANGUAGES,),
        languages={language: number for number, language in enumerate(LANGUAGES, 4)},
        model=model.config,
        precision=precision,
        attention=attention,
        limits=Limits(source_tokens=positions, target_tokens=positions),
        cache=CacheSpec.of(precision),
        quantisation=None,
        files={},
        graphs=write_graphs(model, folder, attention),
        provenance=Provenance(checkpoint_sha256="", versions={}),
        parity=None,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
