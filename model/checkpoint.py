"""A checkpoint: a folder with ``config.json``, ``model.safetensors`` (fp16), ``tokenizer.model``, and, where sentence
vectors have been fitted, ``pooling.safetensors``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from model import pooling
from model.config import ModelConfig
from model.files import write
from model.pooling import AttentionPooling
from model.tokenizer import Tokenizer, language_token
from model.transformer import Transformer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.model"
POOLING = "pooling.safetensors"
PRETRAINED = Path(__file__).parent / "pretrained"
"""The checkpoints that ship, a folder each."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message lists every fault found."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        super().__init__(f"checkpoint {folder} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
        self.faults = faults


class CheckpointConfig(BaseModel):
    """The contents of ``config.json``; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    """Source and target languages the model has learnt, such as ``("en", "de")``."""
    model: ModelConfig


@dataclass(frozen=True)
class Checkpoint:
    """A model with its text side. The weights are the fp16 values of the file, held in fp32."""

    config: CheckpointConfig
    model: Transformer
    tokenizer: Tokenizer
    pooling: AttentionPooling | None = None
    """Makes sentence vectors, where one has been fitted (`model.fit_pooling`)."""


def shipped() -> list[str]:
    """Names of the checkpoints that ship."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


def locate(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: text that names one that ships means that one, a `Path` or ``./NAME`` the folder."""
    return PRETRAINED / checkpoint if isinstance(checkpoint, str) and checkpoint in shipped() else Path(checkpoint)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``weights`` as fp16; a tensor known by two names (tied embeddings) is written once, under the first."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, weight in weights.items():
        unique.setdefault(weight.data_ptr(), (name, weight))
    write(path, serialize({name: weight.detach().half().contiguous() for name, weight in unique.values()}))


def save(folder: Path, config: CheckpointConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write a checkpoint into ``folder``, made if need be; a pooling that was fitted to what stood there goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POOLING).unlink(missing_ok=True)
    save_weights(folder / WEIGHTS, weights)
    write(folder / TOKENIZER, tokenizer.serialized)
    write(folder / CONFIG, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())


def load(folder: Path) -> Checkpoint:
    """Read and check ``folder``; CheckpointError lists everything that is wrong with it at once."""
    faults = [f"{name} is missing" for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if f"{WEIGHTS} is missing" in faults and folder.parent == PRETRAINED:
        faults.append("an installed package leaves the weights of checkpoints out: use a clone of the repository")
    config, tokenizer, weights = None, None, None
    if (folder / CONFIG).is_file():
        try:
            config = CheckpointConfig.model_validate_json((folder / CONFIG).read_bytes())
        except ValidationError as error:
            faults += [
                f"{CONFIG}: {'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()
            ]
    if (folder / TOKENIZER).is_file():
        try:
            tokenizer = Tokenizer.load(folder / TOKENIZER)
        except ValueError as error:
            faults.append(f"{TOKENIZER}: {error}")
    if (folder / WEIGHTS).is_file():
        try:
            weights = load_file(folder / WEIGHTS)
        except (SafetensorError, ValueError) as error:
            faults.append(f"{WEIGHTS}: {error}")
    if config and tokenizer and tokenizer.vocabulary != config.model.vocabulary:
        faults.append(f"{TOKENIZER} has {tokenizer.vocabulary} pieces, {CONFIG} says {config.model.vocabulary}")
    if config and tokenizer:
        known = set(tokenizer)
        languages = sorted({language for pair in config.pairs for language in pair})
        faults += [f"{TOKENIZER} has no token for {one}" for one in languages if language_token(one) not in known]
    model = None
    if config and weights is not None:
        model = Transformer(config.model).eval()
        faults += _fit(model, weights)
    pooled = None
    if config and (folder / POOLING).is_file():
        try:
            pooled = pooling.load(folder / POOLING, config.model.width)
        except ValueError as error:
            faults.append(str(error))
    if faults or config is None or model is None or tokenizer is None:
        raise CheckpointError(folder, faults)
    return Checkpoint(config, model, tokenizer, pooled)


def _fit(model: Transformer, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy ``weights`` into ``model``; what does not fit is left out and returned as faults."""
    faults, seen = [], set()
    for name, parameter in model.named_parameters():
        weight = weights.get(name)
        seen.add(name)
        if weight is None:
            faults.append(f"{WEIGHTS}: {name} is missing")
        elif weight.shape != parameter.shape:
            faults.append(f"{WEIGHTS}: {name} is {list(weight.shape)}, expected {list(parameter.shape)}")
        elif not weight.isfinite().all():
            faults.append(f"{WEIGHTS}: {name} holds values that are not finite")
        else:
            with torch.no_grad():
                parameter.copy_(weight)
    return faults + [f"{WEIGHTS}: {name} is not part of this model" for name in weights if name not in seen]
