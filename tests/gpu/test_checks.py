"""The other checks on a card, on the fake device and with faults of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import read_manifest
from serving.runtime.selfcheck import Proof
from tests.gpu import faults, memory, placement
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


def test_memory_is_read_after_every_wave(lively_bundle: Callable[..., Path]) -> None:
    result = memory.check(lively_bundle("fp16"), "fake", 120, 16, 2)
    assert result["requests"] == 120
    assert len(result["process_mib"]) == memory.SAMPLES  # type: ignore[arg-type]


def test_nodes_that_are_elsewhere_are_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.check(tiny_bundle, "cpu")["passed"]
    found = {"CPUExecutionProvider": {"MatMul": 2, "Shape": 1}, "CUDAExecutionProvider": {"Add": 3}}
    monkeypatch.setattr(placement, "placed", lambda *_: found)
    result = placement.check(tiny_bundle, "cuda")
    assert not result["passed"]
    assert result["astray"]["decoder"] == ["MatMul"]  # type: ignore[index]
