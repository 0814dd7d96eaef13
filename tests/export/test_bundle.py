import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bundle import FILES, GRAPHS, MANIFEST, BundleError, digest, read_manifest


@pytest.fixture
def folder(bundle_of: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A good bundle to damage."""
    return Path(shutil.copytree(bundle_of("int8", "fused"), tmp_path / "bundle"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_good_bundle_is_read_whole(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.model_dump(mode="json") == json.loads((folder / MANIFEST).read_bytes())
    assert set(manifest.files) == set(FILES)
    assert set(manifest.graphs) == set(GRAPHS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "is missing"),
        (flip, "does not match the sha256"),
        (truncate, "bytes, expected"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, name: str, damage: Callable[[Path], object], fault: str) -> None:
    damage(folder / name)
    with pytest.raises(BundleError) as error:
        read_manifest(folder)
    assert len(error.value.faults) == 1
    assert name in error.value.faults[0]
    assert fault in error.value.faults[0]


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda manifest: manifest.update(surprise=1), ["surprise"]),
        (lambda manifest: manifest["special"].update(mask=4), ["special.mask"]),
        (lambda manifest: manifest["cache"].update(dtype="bfloat16"), ["cache.dtype"]),
        (lambda manifest: manifest.update(format=1), ["format"]),
        (lambda manifest: manifest.update(format=3), ["format"]),
        (lambda manifest: manifest.pop("parity"), ["parity"]),
        (lambda manifest: manifest.update(parity=None), ["no parity report"]),
        (lambda manifest: manifest["parity"].update(passed=False), ["parity gate failed"]),
        (lambda manifest: manifest["graphs"].pop("decoder"), ["graph decoder is not described"]),
        (lambda manifest: manifest["files"].pop("weights.bin"), ["weights.bin is not in"]),
        (lambda manifest: manifest.update(files={}), [f"{name} is not in" for name in FILES]),
    ],
    ids=[
        "key",
        "nested key",
        "cache",
        "older",
        "newer",
        "parity gone",
        "parity null",
        "parity failed",
        "graph",
        "file",
        "no files",
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], faults: list[str]
) -> None:
    rewrite(folder, change)
    with pytest.raises(BundleError) as error:
        read_manifest(folder)
    assert len(error.value.faults) == len(faults)
    assert all(expected in found for expected, found in zip(faults, error.value.faults, strict=True))


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_what_is_not_a_json_object_is_refused(folder: Path, contents: bytes) -> None:
    (folder / MANIFEST).write_bytes(contents)
    with pytest.raises(BundleError, match=MANIFEST):
        read_manifest(folder)


@pytest.mark.parametrize("folder_name", ["empty", "absent"])
def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, folder_name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=f"{MANIFEST} is missing"):
        read_manifest(tmp_path / folder_name)


def test_every_fault_is_listed_at_once(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    flip(folder / "weights.bin")
    truncate(folder / "encoder.onnx")
    rewrite(folder, lambda manifest: [manifest["graphs"].pop("attention"), manifest.update(parity=None)])
    with pytest.raises(BundleError) as error:
        read_manifest(folder)
    expected = ("tokenizer.model", "encoder.onnx", "weights.bin", "graph attention", "parity report")
    assert len(error.value.faults) == len(expected)
    assert all(part in fault for part, fault in zip(expected, error.value.faults, strict=True))
    assert all(fault in str(error.value) for fault in error.value.faults)


def test_a_manifest_that_cannot_be_read_does_not_hide_missing_files(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(format=7, surprise=1))
    (folder / "decoder.onnx").unlink()
    with pytest.raises(BundleError) as error:
        read_manifest(folder)
    assert len(error.value.faults) == 3
    assert "decoder.onnx is missing" in error.value.faults


def test_a_digest_knows_contents_and_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    found = digest(tmp_path / "file")
    assert found.bytes == 3
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_reading_a_bundle_needs_neither_torch_nor_onnx(folder: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'safetensors', 'onnxruntime')));"
        "from export.bundle import read_manifest; print(read_manifest(pathlib.Path(sys.argv[1])).name)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "small\n", done.stderr
