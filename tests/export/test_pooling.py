import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import MANIFEST, POOLING, BundleError, digest, read_manifest
from export.exporter import ParityError, export
from export.ort import onnxruntime
from export.pooling import NAME, pooling_graph
from export.subgraph import attention_nodes, cut_out
from export.verify import VECTOR_BOUND
from model import checkpoint, pooling
from model.pooling import AttentionPooling


@pytest.fixture(scope="module")
def pooled_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """The small checkpoint with a pooling of random weights."""
    folder = make_checkpoint()
    torch.manual_seed(5)
    pooling.save(folder / checkpoint.POOLING, AttentionPooling(16, queries=3, narrow=4))
    return folder


@pytest.fixture(scope="module")
def pooled_bundle(pooled_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "pooled"
    export(pooled_checkpoint, folder, "int8")
    return folder


def test_the_graph_computes_what_pytorch_does_whatever_the_padding(pooled_checkpoint: Path) -> None:
    module = checkpoint.load(pooled_checkpoint).pooling
    assert module
    graph = pooling_graph(module)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    lengths = np.array([9, 1, 4], np.int32)
    memory = random.normal(size=(3, 9, 16)).astype(np.float32)
    vectors, weights = session.run(["vectors", "weights"], {"memory": memory, "lengths": lengths})
    with torch.inference_mode():
        expected = module(torch.from_numpy(memory), torch.from_numpy(lengths))
    np.testing.assert_allclose(vectors, expected.vectors, atol=1e-6)
    np.testing.assert_allclose(weights[:, 0], expected.weights, atol=1e-6)
    [alone] = session.run(["vectors"], {"memory": memory[2:, :4], "lengths": lengths[2:]})
    np.testing.assert_allclose(alone[0], vectors[2], atol=1e-6)


def test_a_bundle_says_that_it_has_one_and_how_exact_it_is(pooled_bundle: Path, each_bundle: Path) -> None:
    manifest = read_manifest(pooled_bundle)
    assert manifest.poolings == ("attention", "mean")
    assert manifest.files["pooling.onnx"] == digest(pooled_bundle / "pooling.onnx")
    assert [value.name for value in manifest.graphs[POOLING].outputs] == ["vectors", "weights"]
    assert manifest.parity
    assert manifest.parity.vector_error is not None
    assert manifest.parity.vector_error <= VECTOR_BOUND
    without = read_manifest(each_bundle)
    assert without.poolings == ("mean",)
    assert without.parity
    assert without.parity.vector_error is None


def test_a_pooling_changes_no_other_file(
    pooled_bundle: Path, bundle_of: Callable[..., Path], pooled_checkpoint: Path
) -> None:
    plain, pooled = (read_manifest(each).files for each in (bundle_of("int8", "fused"), pooled_bundle))
    assert {name: file for name, file in pooled.items() if name != "pooling.onnx"} == plain


def test_it_is_the_same_in_an_fp16_bundle(pooled_bundle: Path, pooled_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export(pooled_checkpoint, tmp_path / "bundle", "fp16")
    expected = read_manifest(pooled_bundle)
    assert manifest.files["pooling.onnx"] == expected.files["pooling.onnx"]
    assert manifest.graphs[POOLING] == expected.graphs[POOLING]
    assert {value.dtype for value in manifest.graphs[POOLING].outputs} == {"float32"}


def test_its_attention_is_listed_and_cut_out(pooled_bundle: Path) -> None:
    *_, node = attention_nodes(pooled_bundle)
    assert (node.graph, node.name, node.function, node.heads) == (POOLING, NAME, "CrossAttention", 1)
    assert (node.inputs["query"], node.inputs["key"]) == ("[1, 3, 16]", "[rows, source, 16]")
    alone = onnxruntime.InferenceSession(
        cut_out(pooled_bundle, NAME).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    memory = np.ones((2, 3, 16), np.float32)
    feeds = {"query": memory[:1], "key": memory, "value": memory, "visible": np.ones((2, 1, 1, 3), bool)}
    np.testing.assert_allclose(alone.run(["output"], feeds)[0], memory, rtol=1e-6)


@pytest.mark.parametrize("change", ["missing", "other"])
def test_a_bundle_whose_pooling_is_not_as_described_is_refused(
    pooled_bundle: Path, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(pooled_bundle, folder)
    if change == "missing":
        (folder / "pooling.onnx").unlink()
    else:
        (folder / "pooling.onnx").write_bytes(b"another")
    said = {"missing": "pooling.onnx is missing", "other": f"pooling.onnx does not match {MANIFEST}"}[change]
    with pytest.raises(BundleError, match=said):
        read_manifest(folder)


def test_the_gate_refuses_a_pooling_that_computes_something_else(
    pooled_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(module: AttentionPooling) -> onnx.ModelProto:
        with torch.no_grad():
            module.value[0, 0, 0] += 0.1
        graph = pooling_graph(module)
        with torch.no_grad():
            module.value[0, 0, 0] -= 0.1
        return graph

    monkeypatch.setattr("export.exporter.pooling_graph", other)
    with pytest.raises(ParityError, match="vector_error"):
        export(pooled_checkpoint, tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()
