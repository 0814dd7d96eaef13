import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export import verify
from export.bundle import FILES, GRAPHS, MANIFEST, digest, file_names, read_manifest
from export.exporter import ParityError, export
from export.functions import DOMAIN
from model import checkpoint
from model.checkpoint import CheckpointError

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def broken_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that nothing can meet."""
    monkeypatch.setattr(verify, "LOG_PROBABILITY_BOUND", dict.fromkeys(("fp32", "fp16", "int8"), -1.0))


def test_another_process_folder_and_hash_seed_give_the_same_bytes(
    bundle_of: Callable[[str, str], Path], small_checkpoint: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(small_checkpoint, tmp_path / "elsewhere" / "source")
    code = "import sys, pathlib; from export.exporter import export; export(*map(pathlib.Path, sys.argv[1:]))"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, source, "deep/er/target"], cwd=tmp_path, env=environment, check=True)
    assert contents(tmp_path / "deep/er/target") == contents(bundle_of("int8", "fused"))


def test_every_precision_with_every_body_is_a_good_bundle(each_bundle: Path) -> None:
    manifest = read_manifest(each_bundle)
    assert f"{manifest.precision}-{manifest.attention}" == each_bundle.name
    assert (manifest.quantisation is None) == (manifest.precision != "int8")


def test_the_manifest_says_what_the_bundle_is(each_bundle: Path, small_checkpoint: Path) -> None:
    manifest, loaded = read_manifest(each_bundle), checkpoint.load(small_checkpoint)
    assert manifest.format == 2
    assert (manifest.name, manifest.pairs, manifest.model) == ("small", (("en", "de"),), loaded.config.model)
    assert manifest.languages == {language: loaded.tokenizer.language_id(language) for language in ("de", "en")}
    assert manifest.special.model_dump() == {"padding": 0, "unknown": 1, "start": 2, "end": 3}
    assert manifest.limits.model_dump() == {"source_tokens": 16, "target_tokens": 16}
    assert manifest.cache.dtype == {"fp32": "float32", "fp16": "float16", "int8": "int8"}[manifest.precision]
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert [case.rows for case in manifest.parity.cases] == [1, 2, 7, 32]
    names = file_names(manifest.graphs)
    assert set(names) - set(FILES) == (set() if manifest.precision == "int8" else {"admit.onnx", "reorder.onnx"})
    assert manifest.files == {name: digest(each_bundle / name) for name in names}
    assert {path.name for path in each_bundle.iterdir()} == {*names, MANIFEST}
    assert manifest.provenance.versions == {
        name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "torch")
    }


def test_the_manifest_describes_inputs_and_outputs_of_every_graph(each_bundle: Path) -> None:
    manifest = read_manifest(each_bundle)
    for name in GRAPHS:
        graph = onnx.load(each_bundle / f"{name}.onnx", load_external_data=False).graph
        for specs, values in (
            (manifest.graphs[name].inputs, graph.input),
            (manifest.graphs[name].outputs, graph.output),
        ):
            assert [spec.name for spec in specs] == [value.name for value in values]
    caches = {
        f"{kind}_{part}_{layer}": (manifest.cache.dtype, shape)
        for kind, shape in (
            ("self", ("rows", 2, "capacity", 8)),
            ("cross", ("rows", 2, "source", 8)),
            ("last", ("rows", 1, 16)),
        )
        for part in ("key", "value")
        for layer in (0, 1)
    }
    encoded = {spec.name: (spec.dtype, spec.shape) for spec in manifest.graphs["encoder"].outputs}
    assert encoded == {name: spec for name, spec in caches.items() if name.startswith("cross")} | {
        "memory": ("float32", ("rows", "source", 16))
    }
    inputs, outputs = (
        {spec.name: (spec.dtype, spec.shape) for spec in specs}
        for specs in (manifest.graphs["decoder"].inputs, manifest.graphs["decoder"].outputs)
    )
    assert inputs == caches | {
        "token": ("int64", ("rows",)),
        "given": ("int64", ("rows",)),
        "position": ("int32", ("rows",)),
        "lengths": ("int32", ("rows",)),
        "k": ("int64", (1,)),
    }
    assert outputs == {f"{name}_out": spec for name, spec in caches.items() if not name.startswith("last")} | {
        "tokens": ("int64", ("rows", "k")),
        "log_probabilities": ("float32", ("rows", "k")),
        "given_log_probability": ("float32", ("rows",)),
        "log_softmax": ("float32", ("rows", 512)),
    }


def test_the_checkpoint_hash_follows_the_weights(
    bundle_of: Callable[[str, str], Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    hashes = {
        read_manifest(bundle_of(precision, "fused")).provenance.checkpoint_sha256 for precision in ("fp32", "int8")
    }
    other = export(make_checkpoint(activation="gelu"), tmp_path / "other", "fp32").provenance.checkpoint_sha256
    assert len(hashes) == 1
    assert other not in hashes


def test_a_standard_fp32_bundle_needs_no_vendor_operator(bundle_of: Callable[[str, str], Path]) -> None:
    for name in GRAPHS:
        model = onnx.load(bundle_of("fp32", "standard") / f"{name}.onnx", load_external_data=False)
        nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
        assert {node.domain for node in nodes} == {"", DOMAIN}


def test_an_older_bundle_is_replaced_and_nothing_is_left_beside_it(
    bundle_of: Callable[[str, str], Path], small_checkpoint: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(bundle_of("fp32", "standard"), tmp_path / "target"))
    (target / "stale").touch()
    export(small_checkpoint, target, "int8")
    assert contents(target) == contents(bundle_of("int8", "fused"))
    assert list(tmp_path.iterdir()) == [target]


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_one_that_was_there(
    bundle_of: Callable[[str, str], Path], small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(bundle_of("fp32", "standard"), tmp_path / "target"))
    rename = Path.rename

    def once(path: Path, there: Path) -> Path:
        if path.name == "target" and path != target:
            raise OSError("no space left on device")
        return rename(path, there)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match="no space"):
        export(small_checkpoint, target, "fp32")
    assert contents(target) == contents(bundle_of("fp32", "standard"))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("broken_gate")
def test_a_failing_gate_leaves_the_bundle_that_was_there(
    bundle_of: Callable[[str, str], Path], small_checkpoint: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(bundle_of("fp32", "standard"), tmp_path / "target"))
    with pytest.raises(ParityError) as error:
        export(small_checkpoint, target, "int8")
    assert json.loads(str(error.value).partition("\n")[2])["passed"] is False
    assert contents(target) == contents(bundle_of("fp32", "standard"))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("broken_gate")
def test_a_failing_gate_writes_nothing_where_nothing_was(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        export(small_checkpoint, tmp_path / "target", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "precious.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not a bundle"):
        export(small_checkpoint, tmp_path / "letters", "fp32")
    assert contents(tmp_path) == {"letters/precious.txt": b"keep me"}


def test_an_empty_folder_may_become_a_bundle(small_checkpoint: Path, tmp_path: Path) -> None:
    export(small_checkpoint, tmp_path, "fp32")
    assert read_manifest(tmp_path).precision == "fp32"


@pytest.mark.parametrize("name", [checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TOKENIZER])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"not what it was")])
def test_a_bad_checkpoint_is_refused(
    small_checkpoint: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    source = Path(shutil.copytree(small_checkpoint, tmp_path / "source"))
    damage(source / name)
    with pytest.raises(CheckpointError, match=name):
        export(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
