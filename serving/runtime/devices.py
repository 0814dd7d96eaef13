"""Where a bundle can be run."""

from pathlib import Path

from export.bundle import BundleError, Manifest
from export.ort import onnxruntime
from serving.runtime.cpu import CpuRuntime
from serving.runtime.interface import Runtime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Devices to ONNX Runtime's names for what runs graphs on them."""
DEVICES = tuple(PROVIDERS)


def check_device(folder: Path, manifest: Manifest, device: str) -> None:
    """BundleError when ``device`` ("cpu" or "cuda") is not there or cannot run the bundle in ``folder``."""
    provider = PROVIDERS[device]
    faults = []
    if provider not in onnxruntime.get_available_providers():
        faults.append(f"{device} was asked for, but this onnxruntime has no {provider}")
    if device == "cuda" and manifest.precision == "int8":
        faults.append("int8 is for the CPU")
    if faults:
        raise BundleError(folder, faults)


def runtime_on(device: str, folder: Path, manifest: Manifest, threads: int) -> Runtime:
    """A runtime for the checked bundle in ``folder``; BundleError when the ``device`` cannot run it."""
    check_device(folder, manifest, device)
    if device != "cpu":
        raise BundleError(folder, [f"this version does not compute on {device} yet"])
    return CpuRuntime(folder, manifest, threads)
