import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import checkpoint, pooling
from model.checkpoint import CheckpointConfig, CheckpointError
from model.config import ModelConfig
from model.pooling import AttentionPooling
from model.tokenizer import Tokenizer
from model.transformer import Transformer

KINDS: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": False, "positions": "learned"},
    {"norm": "post", "tied_embeddings": False},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_rounds_the_weights_to_half_precision(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer, sentences: list[str], kind: dict[str, Any]
) -> None:
    config = CheckpointConfig(name="x", pairs=(("en", "de"), ("de", "en")), model=tiny_config.model_copy(update=kind))
    weights = dict(Transformer(config.model).named_parameters())
    checkpoint.save(tmp_path / "made" / "on demand", config, weights, tiny_tokenizer)
    loaded = checkpoint.load(tmp_path / "made" / "on demand")
    assert loaded.config == config
    assert not loaded.model.training
    assert [loaded.tokenizer.target(text) for text in sentences] == [tiny_tokenizer.target(text) for text in sentences]
    found = dict(loaded.model.named_parameters())
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight.half().float())


def test_a_tensor_of_two_names_is_written_once_under_the_first(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    checkpoint.save_weights(tmp_path / "w", {"a": weight, "b": weight, "c": weight + 1})
    written = load_file(tmp_path / "w")
    assert {name: tensor.dtype for name, tensor in written.items()} == {"a": torch.float16, "c": torch.float16}
    assert torch.equal(written["c"], (weight + 1).half())


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_a_pooling_is_loaded_where_there_is_one_and_goes_with_the_weights_it_was_fitted_to(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.pooling
    checkpoint.save(folder, loaded.config, dict(loaded.model.named_parameters()), loaded.tokenizer)
    assert checkpoint.load(folder).pooling is None


def test_a_pooling_that_does_not_fit_is_one_of_the_faults(folder: Path) -> None:
    pooling.save(folder / checkpoint.POOLING, AttentionPooling(48, queries=2, narrow=4))
    (folder / checkpoint.TOKENIZER).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder)
    assert error.value.faults[0] == "tokenizer.model is missing"
    assert error.value.faults[1].startswith("pooling.safetensors: Error(s) in loading state_dict")


def test_checkpoints_that_ship_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.shipped() == ["en-de-base", "en-de-small"]
    for name in checkpoint.shipped():
        assert checkpoint.load(checkpoint.locate(name)).config.name == name
    assert checkpoint.locate("./en-de-base") == checkpoint.locate(Path("en-de-base")) == Path("en-de-base")
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match="an installed package leaves the weights of checkpoints out"):
        checkpoint.load(tmp_path / "bare")


def change_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / checkpoint.CONFIG).read_text())
    (folder / checkpoint.CONFIG).write_text(json.dumps({**values, **changes}))


def change_shape(folder: Path, **changes: Any) -> None:
    change_config(folder, model=json.loads((folder / checkpoint.CONFIG).read_text())["model"] | changes)


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / checkpoint.WEIGHTS)
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / checkpoint.WEIGHTS)


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


NORM = "encoder.0.self_residual.norm.bias"
Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    "config not JSON": (lambda f: truncate(f / "config.json", 0.5), "config.json: file: Invalid JSON"),
    "config empty": (lambda f: truncate(f / "config.json", 0), "config.json: file: Invalid JSON"),
    "unknown key": (lambda f: change_config(f, colour="red"), "config.json: colour: Extra inputs"),
    "unknown key of the model": (lambda f: change_shape(f, depth=3), "config.json: model.depth: Extra inputs"),
    "key of a wrong kind": (lambda f: change_shape(f, norm="none"), "config.json: model.norm: Input should be"),
    "impossible model": (lambda f: change_shape(f, heads=5), "config.json: model: Value error, width 32"),
    "no pairs": (lambda f: change_config(f, pairs=[]), "config.json: pairs: Tuple should have at least 1 item"),
    "language without a token": (
        lambda f: change_config(f, pairs=[["en", "de"], ["en", "fr"]]),
        "tokenizer.model has no token for fr",
    ),
    "wrong shape": (
        lambda f: change_weights(f, lambda w: w.update({NORM: torch.zeros(31)})),
        f"model.safetensors: {NORM} is [31], expected [32]",
    ),
    "missing tensor": (lambda f: change_weights(f, lambda w: w.pop(NORM)), f"model.safetensors: {NORM} is missing"),
    "extra tensor": (
        lambda f: change_weights(f, lambda w: w.update(surplus=torch.zeros(2))),
        "model.safetensors: surplus is not part of this model",
    ),
    "NaN": (
        lambda f: change_weights(f, lambda w: w[NORM].__setitem__(3, torch.nan)),
        f"model.safetensors: {NORM} holds values that are not finite",
    ),
    "infinity": (
        lambda f: change_weights(f, lambda w: w[NORM].__setitem__(0, -torch.inf)),
        f"model.safetensors: {NORM} holds values that are not finite",
    ),
    "truncated weights": (lambda f: truncate(f / "model.safetensors", 0.7), "model.safetensors: "),
    "empty weights": (lambda f: truncate(f / "model.safetensors", 0), "model.safetensors: "),
    "garbage weights": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "model.safetensors: "),
    "garbage tokenizer": (
        lambda f: (f / "tokenizer.model").write_bytes(b"garbage"),
        "tokenizer.model: not a sentencepiece model",
    ),
    "another tokenizer": (
        lambda f: (f / "tokenizer.model").write_bytes(Tokenizer.train(["ab cd ef gh"], 271).serialized),
        "tokenizer.model has 271 pieces, config.json says 800",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported(folder: Path, name: str) -> None:
    damage, report = DAMAGES[name]
    damage(folder)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(folder)
    (fault,) = raised.value.faults
    assert fault.startswith(report)
    assert str(folder) in str(raised.value)
    assert fault in str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ["another tokenizer", "wrong shape", "extra tensor"],
        ["unknown key", "truncated weights", "garbage tokenizer"],
        ["no config", "no weights", "no tokenizer"],
        ["unknown key", "key of a wrong kind", "no weights", "garbage tokenizer"],
    ],
    ids=" and ".join,
)
def test_all_damage_is_listed_at_once(folder: Path, names: list[str]) -> None:
    for name in names:
        DAMAGES[name][0](folder)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(folder)
    assert len(raised.value.faults) == len(names)
    for name in names:
        assert any(fault.startswith(DAMAGES[name][1]) for fault in raised.value.faults)
        assert f"\n  - {DAMAGES[name][1]}" in str(raised.value)


def test_weights_of_another_model_are_all_named(folder: Path) -> None:
    change_shape(folder, width=16, decoder_layers=1)
    (folder / checkpoint.POOLING).unlink()
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(folder)
    names = load_file(folder / checkpoint.WEIGHTS)
    changed = [name for name, weight in names.items() if 32 in weight.shape or name.startswith("decoder.1.")]
    assert len(raised.value.faults) == len(changed)
    assert all(any(f" {name} is " in fault for fault in raised.value.faults) for name in changed)


def test_an_absent_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(tmp_path / "nowhere")
    assert len(raised.value.faults) == 3
