"""A replica that computes something else than its bundle means is found out before it is ready."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import read_manifest
from export.exporter import Precision
from export.probes import Probes
from serving.runtime.batch import CacheCopy
from serving.runtime.cpu import CpuRuntime
from serving.runtime.device import DeviceArray
from serving.runtime.device_cache import DeviceCache
from serving.runtime.device_decoder import DeviceDecoder
from serving.runtime.selfcheck import SelfCheckError, prove
from serving.runtime.step_result import StepArrays
from tests.serving.runtime.fake_device import FakeArray, FakeDevice, device_runtime


@pytest.fixture(scope="module", params=[("fp32", "fused"), ("fp32", "standard"), ("fp16", "fused")], ids="-".join)
def bundle(request: pytest.FixtureRequest, lively_bundle: Callable[..., Path]) -> Path:
    return lively_bundle(*request.param)


def probes_of(bundle: Path) -> Probes:
    probes = read_manifest(bundle).probes
    assert probes
    return probes


def check(bundle: Path, device: FakeDevice, rows: int = 24) -> None:
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


def faulty(**changes: Callable[..., Any]) -> FakeDevice:
    """A fake device with other methods; each is given the device's own one first."""
    device = FakeDevice()
    for name, change in changes.items():
        right = getattr(device, name)
        setattr(device, name, lambda *arguments, change=change, right=right: change(right, *arguments))
    return device


def lost(*names: str) -> FakeDevice:
    """What a step writes to some caches does not come back."""

    def bind(right: Any, session: Any, inputs: Any, outputs: Mapping[str, DeviceArray], host: Any) -> Any:
        elsewhere = {
            name: FakeArray(np.zeros(array.shape, array.dtype)) if name in names else array
            for name, array in outputs.items()
        }
        return right(session, inputs, elsewhere, host)

    return faulty(bind=bind)


def upload_of(name: str, change: Callable[[Any, DeviceArray, int], Any]) -> FakeDevice:
    """``change`` decides what is uploaded for the input ``name`` of the decoder: values, or None for nothing."""
    arrays: dict[int, int] = {}

    def bind(right: Any, session: Any, inputs: Mapping[str, Any], outputs: Any, host: Any) -> Any:
        if "token" in inputs:
            arrays[id(inputs[name])] = 0
        return right(session, inputs, outputs, host)

    def upload(right: Any, values: Any, array: Any) -> None:
        if id(array) in arrays:
            arrays[id(array)] += 1
            values = change(values, array, arrays[id(array)])
        if values is not None:
            right(values, array)

    return faulty(bind=bind, upload=upload)


def stale(name: str) -> FakeDevice:
    """Whatever comes after the first step of a number of rows, its ``name`` is used."""
    return upload_of(name, lambda values, array, count: None if count > 1 else values)


def exchanged(name: str) -> FakeDevice:
    """Wherever there are several rows, two have each other's ``name``."""
    return upload_of(
        name, lambda values, array, count: values[[1, 0, *range(2, len(values))]] if len(values) > 1 else values
    )


def off_by_one(by: int, row: int) -> FakeDevice:
    """One row's source is longer or shorter than it is."""

    def change(values: Any, array: DeviceArray, count: int) -> Any:
        if len(values) > row:
            values = values.copy()
            values[row] += by
        return values

    return upload_of("lengths", change)


def forgetful(position: int) -> FakeDevice:
    """From a ``position`` on, values are not written any more."""

    def bind(right: Any, session: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], host: Any) -> Any:
        run = right(session, inputs, outputs, host)
        if "position" not in inputs:
            return run
        caches = {name: device._of(array) for name, array in outputs.items() if name.startswith("self_value")}

        def forget() -> None:
            late = device._of(inputs["position"]) >= position
            kept = {name: values[late].copy() for name, values in caches.items()}
            run()
            for name, values in kept.items():
                caches[name][late] = values

        return forget

    device = faulty(bind=bind)
    return device


def other_softmax() -> FakeDevice:
    """The log-probabilities of all tokens are those of the step before."""
    return faulty(
        download=lambda right, array: (
            np.roll(right(array), 1, -1) if len(array.shape) == 2 and array.shape[1] == 800 else right(array)
        )
    )


FAULTS: dict[str, Callable[[], FakeDevice]] = {
    "no key is written": lambda: lost("self_key_0_out", "self_key_1_out"),
    "one layer's values are not written": lambda: lost("self_value_1_out"),
    "the source's keys are not put into rows": lambda: lost("cross_key_0_out"),
    "token of the step before": lambda: stale("token"),
    "position of the step before": lambda: stale("position"),
    "lengths of the step before": lambda: stale("lengths"),
    "given token of the step before": lambda: stale("given"),
    "all tokens' probabilities in another order": other_softmax,
    "tokens of two rows exchanged": lambda: exchanged("token"),
    "positions of two rows exchanged": lambda: exchanged("position"),
    "lengths of two rows exchanged": lambda: exchanged("lengths"),
    "the first source a token too short": lambda: off_by_one(-1, 0),
    "the first source a token too long": lambda: off_by_one(1, 0),
    "the twelfth source a token too short": lambda: off_by_one(-1, 11),
    "the twelfth source a token too long": lambda: off_by_one(1, 11),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_refused(bundle: Path, fault: str) -> None:
    with pytest.raises(SelfCheckError):
        check(bundle, FAULTS[fault]())


def test_a_fault_that_begins_where_rows_are_long_is_refused(bundle: Path) -> None:
    """Only the longest probe can tell."""
    with pytest.raises(SelfCheckError):
        check(bundle, forgetful(probes_of(bundle).longest // 2))


def test_what_is_no_number_in_padding_is_refused_where_it_does_harm(lively_bundle: Callable[..., Path]) -> None:
    """The fused operators never look behind a row's length."""

    def zeros(right: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return FakeArray(np.full(shape, np.nan, dtype)) if len(shape) == 4 else right(shape, dtype)

    with pytest.raises(SelfCheckError):
        check(lively_bundle("fp32", "standard"), faulty(zeros=zeros))
    check(lively_bundle("fp32", "fused"), faulty(zeros=zeros))


@pytest.mark.parametrize("fault", ["not at all", "another row", "another place"])
def test_rows_that_are_copied_wrongly_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    copy = DeviceCache.copy

    def wrong(memory: DeviceCache, copies: list[CacheCopy]) -> None:
        if fault == "another row":
            copies = [each._replace(origin=max(0, each.origin - 1)) for each in copies]
        if fault == "another place":
            copies = [each._replace(row=max(0, each.row - 1)) for each in copies]
        if fault != "not at all":
            copy(memory, copies)

    monkeypatch.setattr(DeviceCache, "copy", wrong)
    with pytest.raises(SelfCheckError):
        check(bundle, FakeDevice())


def test_the_message_is_one_line_that_names_the_probe(bundle: Path) -> None:
    with pytest.raises(SelfCheckError, match=r"^the probe [\d ]+ .*\(\d+ tokens\)") as error:
        check(bundle, stale("position"))
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
