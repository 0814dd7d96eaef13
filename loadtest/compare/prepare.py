"""Write a model for both services: ``python -m loadtest.compare.prepare NAME FOLDER SENTENCES``.

A process of its own, for it needs PyTorch, which gevent's patches would disturb.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import torch

from export.bundle import Manifest
from export.exporter import export
from loadtest.compare.models import DESCRIPTION, PAPER, SMALL
from loadtest.payloads import read_sentences
from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointConfig
from model.config import ModelConfig
from model.sentences import split
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.translate import search
from serving.bench.peer import convert

VOCABULARY = 32_000
"""Of the paper's shape."""
MOST_TOKENS = 64
"""Of a translation: one in a hundred in real documentation is longer. Were more of them so long, p99 would say how long
the longest takes alone."""
FEW, SHORT = 8, 60
"""Sentences that the paper's shape is calibrated and compared with, and their characters at most."""


def prepare(name: str, folder: Path, texts: Sequence[str]) -> None:
    """Write the model ``name`` ("paper" or "en-de-small") into the empty ``folder``, and print what is being done.

    Raises CheckpointError, ParityError, OSError.
    """
    small = checkpoint.load(checkpoint.locate(SMALL))
    if name == PAPER:
        _tell("drawing its weights")
        _write_paper(small, folder / "checkpoint")
    source = folder / "checkpoint" if name == PAPER else checkpoint.locate(name)
    # Random weights never end a sentence: long ones would be translated for minutes, and say no more than short ones.
    english = [text for text in texts if len(text) <= SHORT][:FEW] if name == PAPER else []
    _tell("exporting it and comparing it with PyTorch")
    manifest: Manifest = export(source, folder / "bundle", "int8", english=english)
    _tell("writing it for CTranslate2")
    convert(checkpoint.load(source).model, folder / "ctranslate2")
    _tell("translating what will be asked")
    description = {
        "name": name,
        "language": manifest.languages[manifest.pairs[0][1]],
        "fixed": name == PAPER,
        "lines": _lines(small, texts),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def _tell(stage: str) -> None:
    print(stage, flush=True)


def _write_paper(small: Checkpoint, folder: Path) -> None:
    """A checkpoint of the paper's shape with random weights; texts become the small model's tokenizer's ids."""
    pieces = sentencepiece_model.ModelProto.FromString(small.tokenizer.serialized)
    # Random weights write any token: those its vocabulary lacks get a spelling, and a score that no text earns.
    lowest = min(piece.score for piece in pieces.pieces)
    for number in range(len(pieces.pieces), VOCABULARY):
        pieces.pieces.add(piece=f"▁w{number}", score=lowest - number)
    pieces.trainer_spec.vocab_size = VOCABULARY
    torch.manual_seed(0)
    model = ModelConfig(vocabulary=VOCABULARY, dropout=0.0)
    # One pair only: sources in the other language would be what random weights have written, which never ends.
    config = CheckpointConfig(name=PAPER, pairs=small.config.pairs[:1], model=model)
    weights = dict(Transformer(model).named_parameters())
    checkpoint.save(folder, config, weights, Tokenizer(pieces.SerializeToString()))


def _lines(small: Checkpoint, texts: Sequence[str]) -> list[tuple[str, int]]:
    """Those of ``texts`` that are one sentence the small model can read, with the tokens of its translation.

    Without those of more than `MOST_TOKENS`.
    """
    wanted = [text for text in texts if len(split(text)) == 1]
    sources = [(text, small.tokenizer.source(text, small.config.pairs[0][1])) for text in wanted]
    readable = [(text, ids) for text, ids in sources if len(ids) <= small.model.config.max_positions]
    found = {index: len(each.tokens) for index, each in search(small.model, [ids for _, ids in readable])}
    return [(text, found[index]) for index, (text, _) in enumerate(readable) if found[index] <= MOST_TOKENS]


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), read_sentences(Path(sys.argv[3])))
