from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import BundleError, read_manifest
from export.exporter import Precision
from export.ort import onnxruntime
from serving.runtime.devices import runtime_on
from tests.serving.runtime.fake_device import device_runtime


def test_a_device_that_is_not_there_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no CUDAExecutionProvider"):
        runtime_on("cuda", tiny_bundle, read_manifest(tiny_bundle), 1)


def test_a_device_that_is_there_is_not_mistaken_for_the_cpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BundleError, match="does not compute on cuda yet"):
        runtime_on("cuda", tiny_bundle, read_manifest(tiny_bundle), 1)


def test_int8_is_for_the_cpu(lively_bundle: Callable[[Precision], Path]) -> None:
    bundle = lively_bundle("int8")
    with pytest.raises(BundleError, match="int8 is for the CPU"):
        runtime_on("cuda", bundle, read_manifest(bundle), 1)
    with pytest.raises(BundleError, match="export the checkpoint in fp16"):
        device_runtime(bundle)
