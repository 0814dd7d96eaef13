"""The other checks on a card, on the fake device and with faults of their own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import GRAPHS, read_manifest
from serving.runtime.selfcheck import Proof
from tests.gpu import environment, exports, faults, memory, placement
from tests.gpu.pretend import build
from tests.gpu.work import sources, texts


def test_there_are_five_hundred_sentences_of_both_directions() -> None:
    found = texts()
    assert len(set(found)) == len(found) >= 500
    assert {target for _, target in found} == {"en", "de"}


def test_sentences_are_spread_and_fit_the_model(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    some, all_ = (sources(tiny_bundle, manifest, count) for count in (10, 10_000))
    assert len(some) == 10 < len(all_)
    assert some[0] == all_[0]
    assert max(map(len, all_)) <= manifest.limits.source_tokens


@pytest.mark.slow
def test_every_fault_is_refused_or_does_no_harm(lively_bundle: Callable[..., Path]) -> None:
    result = faults.check(lively_bundle("fp16"), "fake", 24, 8)
    assert result["passed"], result
    assert result["planted"] == len(faults.FAULTS) + len(faults.COPY_FAULTS) + 2
    assert result["harmless"] == ["caches begin as what is no number"]


def test_a_fault_that_is_let_pass_counts_what_it_serves(
    lively_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "prove", lambda *_: Proof(1, 1, 1, 0.0))
    name = "token of the step before"
    monkeypatch.setattr(faults, "planted", lambda _: {name: (faults.FAULTS[name], None)})
    result = faults.check(lively_bundle("fp16"), "fake", 24, 8)
    assert not result["passed"]
    assert result["wrong_served"][name] > 0  # type: ignore[index]


def test_what_could_not_be_planted_proves_nothing(
    lively_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "planted", lambda _: {"none": (lambda device: None, None)})
    result = faults.check(lively_bundle("fp16"), "fake", 24, 8)
    assert not result["passed"]
    assert list(result["not_planted"]) == ["none"]  # type: ignore[call-overload]


@pytest.mark.parametrize(("late", "growth"), [(100.0, 0.0), (140.0, 40.0)])
def test_what_memory_takes_to_warm_up_is_no_growth(late: float, growth: float) -> None:
    assert memory.grown([10.0, 60.0, 90.0, 100.0, 99.0, 100.0, late, late, 99.0]) == growth


@pytest.mark.slow
def test_memory_is_read_after_every_wave(lively_bundle: Callable[..., Path]) -> None:
    result = memory.check(lively_bundle("fp16"), "fake", 120, 16, 2)
    assert result["requests"] == 120
    assert len(result["process_mib"]) == memory.SAMPLES  # type: ignore[arg-type]


def test_requests_of_the_memory_check_are_new_to_the_end_and_the_same_each_time(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    waves = memory.waves(tiny_bundle, manifest, 1000)
    assert waves == memory.waves(tiny_bundle, manifest, 1000)
    assert len(waves) == memory.SAMPLES
    assert sum(map(len, waves)) == 1000
    assert len(waves[0]) == max(map(len, waves))
    assert len(set(map(len, waves))) > memory.SAMPLES // 4
    shapes = [tuple(sorted(map(len, wave))) for wave in waves]
    assert len(set(shapes)) == len(shapes)
    lengths = [len(source) for wave in waves for source in wave]
    most = manifest.limits.source_tokens
    assert max(lengths) <= most
    assert sum(length > most * 3 // 4 for length in lengths) > 10


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, processes: str, whole: str) -> None:
    """An nvidia-smi that says this."""
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncase "$1" in *compute-apps*) {processes};; *) echo "{whole}";; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("processes", "whole", "taken"),
    [
        ("echo 1, 7; echo {pid}, 812", "4096", 812.0),
        ("echo 1, 7; echo {pid}, [N/A]", "4096", 4096.0),
        ("echo [Insufficient Permissions]", "4096", 4096.0),
        ("echo 1, 7", "4096", 4096.0),
        ("true", "[N/A]", None),
    ],
)
def test_where_the_driver_knows_no_process_the_whole_card_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, whole: str, taken: float | None
) -> None:
    smi(tmp_path, monkeypatch, processes.format(pid=os.getpid()), whole)
    assert memory.device_memory() == taken


def test_a_graph_that_is_refused_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = placement.check(tiny_bundle, "cpu")
    assert right["passed"]
    assert all(right[graph]["CPUExecutionProvider"] > 20 for graph in GRAPHS)  # type: ignore[index]
    session = placement.session

    def refusing(graph: Path, device: str) -> object:
        if graph.stem == "attention":
            raise RuntimeError("attention.onnx: MatMul (one) would not be computed on the GPU")
        return session(graph, device)

    monkeypatch.setattr(placement, "session", refusing)
    result = placement.check(tiny_bundle, "cpu")
    assert not result["passed"]
    assert result["astray"] == {"attention": "attention.onnx: MatMul (one) would not be computed on the GPU"}


@pytest.mark.parametrize("said", ["", "No devices were found"])
def test_a_machine_without_a_card_is_none_for_its_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    smi(tmp_path, monkeypatch, "true", said)
    result = environment.check("cuda")
    assert not result["passed"]
    assert str(result["reason"]).startswith(f"there is no GPU: {said}")
    assert environment.check("cpu")["passed"]


def test_onnxruntime_for_cuda_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "true", "A card, 580.1, 1000 MiB, 1 MiB")
    monkeypatch.setattr(environment.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    fault = "ONNX Runtime has no CUDAExecutionProvider: install onnxruntime-gpu in place of onnxruntime"
    assert environment.check("cuda")["reason"] == fault
    monkeypatch.setattr(environment.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert environment.check("cuda")["passed"]


def test_an_export_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exports, "BUNDLES", {"one": ("--precision", "fp16")})
    assert exports.main([str(tmp_path / "nothing"), str(tmp_path)]) == 1
    said, log = capfd.readouterr()
    result = json.loads(said)
    assert list(result["failed"]) == ["one"]
    assert result["reason"] == f"one: {result['failed']['one']}"
    assert "config.json is missing" in log
    assert result["failed"]["one"] == log.splitlines()[-1].strip(" -")


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["one", "two"]])
def test_a_card_is_pretended_of_two_folders(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")
