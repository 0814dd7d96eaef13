"""A replica that computes something else than its bundle means is found out before it is ready."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.bundle import read_manifest
from export.exporter import Precision
from export.probes import Probes
from serving.runtime.cpu import CpuRuntime
from serving.runtime.cpu_decoder import CpuDecoder
from serving.runtime.device import Device
from serving.runtime.device_cache import DeviceCache
from serving.runtime.device_decoder import DeviceDecoder
from serving.runtime.selfcheck import SelfCheckError, prove
from serving.runtime.step_result import StepArrays
from tests.serving.runtime.fake_device import FakeDevice, device_runtime
from tests.serving.runtime.faults import COPY_FAULTS, FAULTS, forgetful, poisoned, stale, wrong_copies


@pytest.fixture(scope="module", params=[("fp32", "fused"), ("fp32", "standard"), ("fp16", "fused")], ids="-".join)
def bundle(request: pytest.FixtureRequest, lively_bundle: Callable[..., Path]) -> Path:
    return lively_bundle(*request.param)


def probes_of(bundle: Path) -> Probes:
    probes = read_manifest(bundle).probes
    assert probes
    return probes


def check(bundle: Path, device: Device, rows: int = 24) -> None:
    runtime = device_runtime(bundle, device)
    prove(runtime, runtime.batch(rows), probes_of(bundle))


@pytest.mark.parametrize("rows", [1, 2, 24])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_right_replica_proves_itself(lively_bundle: Callable[[Precision], Path], rows: int, threads: int) -> None:
    for precision in ("fp32", "int8"):
        bundle = lively_bundle(precision)
        runtime = CpuRuntime(bundle, read_manifest(bundle), threads)
        batch = runtime.batch(rows)
        proof = prove(runtime, batch, probes_of(bundle))
        assert proof.rows == min(rows, 16)
        assert proof.probes == len(probes_of(bundle).probes) >= 4
        assert len(batch) == 0
        assert prove(runtime, batch, probes_of(bundle)).tokens == proof.tokens


def test_a_right_device_proves_itself(bundle: Path) -> None:
    check(bundle, FakeDevice())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_refused(bundle: Path, fault: str) -> None:
    with pytest.raises(SelfCheckError):
        check(bundle, FAULTS[fault](FakeDevice()))


def test_a_fault_that_begins_where_rows_are_long_is_refused(bundle: Path) -> None:
    """Only the longest probe can tell."""
    with pytest.raises(SelfCheckError):
        check(bundle, forgetful(FakeDevice(), probes_of(bundle).longest // 2))


def test_what_is_no_number_in_padding_is_refused_where_it_does_harm(lively_bundle: Callable[..., Path]) -> None:
    """The fused operators never look behind a row's length."""

    with pytest.raises(SelfCheckError):
        check(lively_bundle("fp32", "standard"), poisoned(FakeDevice()))
    check(lively_bundle("fp32", "fused"), poisoned(FakeDevice()))


def test_wrong_probabilities_of_all_tokens_are_refused(
    lively_bundle: Callable[[Precision], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the CPU gives to those who want many tokens."""
    bundle, step = lively_bundle("int8"), CpuDecoder.step

    def other(decoder: CpuDecoder, rows: int, k: int, whole: bool) -> StepArrays:
        arrays = step(decoder, rows, k, whole)
        return arrays._replace(log_softmax=np.roll(arrays.log_softmax, 1, -1)) if whole else arrays

    monkeypatch.setattr(CpuDecoder, "step", other)
    runtime = CpuRuntime(bundle, read_manifest(bundle), 1)
    with pytest.raises(SelfCheckError):
        prove(runtime, runtime.batch(24), probes_of(bundle))


@pytest.mark.parametrize("fault", COPY_FAULTS)
def test_rows_that_are_copied_wrongly_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(DeviceCache, "copy", wrong_copies(fault))
    with pytest.raises(SelfCheckError):
        check(bundle, FakeDevice())


def test_the_message_is_one_line_that_names_the_probe(bundle: Path) -> None:
    with pytest.raises(SelfCheckError, match=r"^the probe [\d ]+ .*\(\d+ tokens\)") as error:
        check(bundle, stale(FakeDevice(), "position"))
    assert "\n" not in str(error.value)


def test_near_ties_may_fall_either_way(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another processor, or in another version of ONNX Runtime: no probe has one."""
    probes, step, turned = probes_of(bundle), DeviceDecoder.step, []

    def other(decoder: DeviceDecoder, rows: int, k: int, whole: bool) -> StepArrays:
        arrays = step(decoder, rows, k, whole)
        likely = arrays.log_probabilities
        near = likely[:, 0] - likely[:, 1] < probes.margin
        # Rows that have gone astray may have one.
        turned.extend(near)
        arrays.tokens[near, :2] = arrays.tokens[near, 1::-1]
        return arrays

    monkeypatch.setattr(DeviceDecoder, "step", other)
    check(bundle, FakeDevice())
    assert any(turned)
