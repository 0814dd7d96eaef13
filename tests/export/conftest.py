"""What the export tests share: a model that exports in a second, and its bundles."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.exporter import Precision, export
from export.functions import Bodies
from model import checkpoint
from model.checkpoint import CheckpointConfig
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer

SMALL = {
    "vocabulary": 512,
    "width": 16,
    "heads": 2,
    "feed_forward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "norm": "pre",
    "max_positions": 16,
    "dropout": 0.0,
}


@pytest.fixture(scope="session")
def small_tokenizer(sentences: list[str]) -> Tokenizer:
    return Tokenizer.train(sentences, SMALL["vocabulary"])


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a checkpoint of the small model with changes; no bias is zero and no norm is one, so each must count."""

    def make(**changes: Any) -> Path:
        model = ModelConfig(**SMALL | changes)
        torch.manual_seed(11)
        weights = {
            name: weight.detach() + 0.05 * torch.randn_like(weight)
            for name, weight in Transformer(model).named_parameters()
        }
        folder = tmp_path_factory.mktemp("checkpoint") / "small"
        checkpoint.save(
            folder, CheckpointConfig(name="small", pairs=(("en", "de"),), model=model), weights, small_tokenizer
        )
        return folder

    return make


@pytest.fixture(scope="session")
def small_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Callable[[Precision, Bodies], Path]:
    """The small checkpoint's bundle in a precision and with bodies; read-only."""

    @functools.cache
    def bundle(precision: Precision, attention: Bodies) -> Path:
        folder = tmp_path_factory.mktemp("bundle") / f"{precision}-{attention}"
        export(small_checkpoint, folder, precision, attention)
        return folder

    return bundle


@pytest.fixture(
    scope="session", params=itertools.product(("fp32", "fp16", "int8"), ("standard", "fused")), ids="-".join
)
def each_bundle(request: pytest.FixtureRequest, bundle_of: Callable[[Precision, Bodies], Path]) -> Path:
    return bundle_of(*request.param)
