import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.bundle import MANIFEST, digest
from tests.conftest import SMALL
from tests.service import dragoman, free_port


def changed(bundle: Path, folder: Path, change: Any) -> Path:
    """A copy of ``bundle`` with another manifest."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def other_token(manifest: dict[str, Any]) -> None:
    manifest["probes"]["probes"][1]["tokens"][0] += 1


def test_a_right_bundle_is_said_to_be_right_with_its_probes(tiny_bundle: Path) -> None:
    done = dragoman("verify", SMALL)
    printed = " ".join(done.stdout.decode().split())
    assert done.returncode == 0, done.stderr
    assert f"{SMALL} is right on this cpu: 9 probes" in printed
    assert "among up to 16 rows" in printed
    assert "leads by more than 0.5 nats" in printed


@pytest.mark.slow
def test_a_checkpoint_brings_the_whole_gate(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    done = dragoman("verify", tiny_bundle, "--checkpoint", tiny_checkpoint)
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime against PyTorch, fp32" in done.stdout.decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--checkpoint", SMALL], "exported from another checkpoint than", marks=pytest.mark.slow),
        pytest.param(["--checkpoint", "nowhere"], "checkpoint nowhere cannot be used", marks=pytest.mark.slow),
        (["--device", "tpu"], "--device is 'tpu'; it takes cpu or cuda"),
        (["--device", "cuda"], "is in fp32 with fused attention, which ONNX Runtime computes on no GPU"),
    ],
)
def test_what_cannot_be_verified_is_said_without_a_traceback(
    tiny_bundle: Path, options: list[str], message: str
) -> None:
    done = dragoman("verify", tiny_bundle, *options)
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_bundle_for_a_gpu_where_there_is_none_is_one_line(lively_bundle: Callable[..., Path]) -> None:
    done = dragoman("verify", lively_bundle("fp16"), "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "has no CUDAExecutionProvider: in an environment of its own, pip install '.[gpu]'" in done.stderr.decode()


def test_a_bundle_that_gives_other_tokens_is_wrong(tiny_bundle: Path, tmp_path: Path) -> None:
    done = dragoman("verify", changed(tiny_bundle, tmp_path, other_token))
    assert done.returncode == 1
    assert done.stderr.decode().startswith("the probe ")
    assert "gives other tokens" in done.stderr.decode()


def test_a_graph_that_computes_something_else_is_wrong(tiny_bundle: Path, tmp_path: Path) -> None:
    """Though its files are what its manifest says."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = onnx.load(copy / "decoder.onnx", load_external_data=False)
    node = next(node for node in graph.graph.node if node.name == "decoder.0.self")
    node.input[0], node.input[2] = node.input[2], node.input[0]
    (copy / "decoder.onnx").write_bytes(graph.SerializeToString())
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["decoder.onnx"] = digest(copy / "decoder.onnx").model_dump()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    done = dragoman("verify", copy)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("the probe ")


def test_a_bundle_whose_model_has_no_probe_is_not_said_to_be_right(tiny_bundle: Path, tmp_path: Path) -> None:
    done = dragoman("verify", changed(tiny_bundle, tmp_path, lambda manifest: manifest["probes"].update(probes=[])))
    assert done.returncode == 1
    assert "keeps the margin of" in done.stderr.decode()


def test_a_bundle_without_probes_is_to_be_exported_again(tiny_bundle: Path, tmp_path: Path) -> None:
    done = dragoman("verify", changed(tiny_bundle, tmp_path, lambda manifest: manifest.update(probes=None)))
    assert done.returncode == 1
    assert "has no probes" in done.stderr.decode()


@pytest.mark.slow
def test_a_replica_that_cannot_prove_itself_does_not_become_ready(tiny_bundle: Path, tmp_path: Path) -> None:
    done = dragoman("serve", "--bundle", changed(tiny_bundle, tmp_path, other_token), "--port", free_port())
    assert done.returncode == 1
    *_, last = done.stderr.decode().strip().splitlines()
    assert "gives other tokens" in last
    assert "Traceback" not in done.stderr.decode()
