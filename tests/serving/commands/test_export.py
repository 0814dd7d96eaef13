from pathlib import Path

from export.bundle import read_manifest
from tests.service import dragoman


def test_lists_and_cuts_out_attention(tiny_bundle: Path, tmp_path: Path) -> None:
    listed = dragoman("export", "--list", tiny_bundle).stdout.decode()
    assert "decoder  decoder.1.cross  CrossAttention, layer 1, 4 heads" in listed
    assert "query [rows, 1, 32]" in listed
    done = dragoman("export", tiny_bundle, tmp_path / "one.onnx", "--subgraph", "decoder.1.cross")
    assert done.returncode == 0
    assert (tmp_path / "one.onnx").stat().st_size
    wrong = dragoman("export", tiny_bundle, tmp_path / "two.onnx", "--subgraph", "decoder.9.cross")
    assert wrong.returncode == 1
    assert "decoder.1.cross" in wrong.stderr.decode()


def test_exports_and_prints_what_the_gate_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = dragoman("export", tiny_checkpoint, tmp_path / "bundle", "--precision", "fp16", "--attention", "standard")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.decode().split())
    assert "ONNX Runtime against PyTorch, fp32: largest differences" in printed
    assert "near-ties within 0.02" in printed
    assert "fp16, standard attention" in printed
    assert read_manifest(tmp_path / "bundle").precision == "fp16"
    refused = dragoman("export", tiny_checkpoint, tmp_path / "bundle", "--precision", "int4")
    assert refused.stderr.decode() == "--precision is 'int4'; it takes fp32, fp16 or int8\n"
