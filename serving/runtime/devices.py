"""Where a bundle can be run."""

import contextlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from export import ort
from export.bundle import ADMIT, GRAPHS, REORDER, WEIGHTS, BundleError, Manifest, shipped
from export.ort import onnxruntime
from serving.runtime.cpu import CpuRuntime
from serving.runtime.cuda_driver import DriverError, gpu_memory
from serving.runtime.interface import Runtime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": ort.CUDA}
"""Devices to ONNX Runtime's names for what runs graphs on them."""
DEVICES = tuple(PROVIDERS)
CONTEXT_BYTES = 1 << 30
"""Of a GPU's memory, what a process takes for CUDA itself: its context, the code of its libraries, their workspaces."""
WORK_BYTES = 256 << 20
"""What a graph wants at least for its work, besides the weights."""
FULL = re.compile(r"out of memory|failed to allocate memory|available memory of", re.IGNORECASE)
"""How CUDA and ONNX Runtime say that a GPU's memory is full."""


class DeviceError(BundleError):
    """A bundle that cannot be run on a device; the message is one line that says why, and what to do."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.faults = [message]


def check_device(folder: Path, manifest: Manifest, device: str, gpus: float = 1, count: int = 1) -> None:
    """DeviceError when ``device`` ("cpu" or "cuda") cannot run the bundle in ``folder``, or there are fewer GPUs
    than ``count``, of which a replica has ``gpus``. It starts nothing on a GPU."""
    if device == "cuda":
        _check_bundle(folder, manifest)
        check_gpus(count)
        _memory(manifest, gpus)


def check_gpus(count: int) -> None:
    """DeviceError when this process cannot compute on so many GPUs."""
    if ort.CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"cuda was asked for, but the package onnxruntime that is installed has no {ort.CUDA}: in an environment "
            "of its own, pip install '.[gpu]' (in a clone: make serve GPU=1 BUNDLE=FOLDER)"
        )
    try:
        found = len(gpu_memory())
    except DriverError as error:
        raise DeviceError(str(error)) from None
    if found < count:
        raise DeviceError(
            f"the replicas take {count} GPUs, and this process may use {found}: choose fewer replicas or max_replicas, "
            "or a smaller gpus, so that more of them share a GPU"
        )


def _check_bundle(folder: Path, manifest: Manifest) -> None:
    """DeviceError when a GPU cannot run a bundle, with the command that makes one of the same checkpoint."""
    checkpoint = manifest.name if manifest.name in shipped() else "CHECKPOINT"
    command = f"dragoman export {checkpoint} FOLDER --precision fp16"
    if manifest.precision == "int8":
        fault = "is in int8, which is for the CPU"
    elif manifest.precision == "fp32" and manifest.attention == "fused":
        fault = "is in fp32 with fused attention, which ONNX Runtime computes on no GPU"
        command += " (or --precision fp32 --attention standard)"
    elif not {ADMIT, REORDER} <= set(manifest.graphs):
        fault = "was exported by an earlier version, without the graphs that a GPU needs"
    elif manifest.probes is None:
        fault = "was exported by an earlier version, without the probes that a GPU is proven with"
    elif not manifest.probes.probes:
        raise DeviceError(
            f"bundle {folder} has no probes, and no GPU translates unproven: no sentence that was tried keeps the "
            f"margin of {manifest.probes.margin} nats; train the model further"
        )
    else:
        return
    raise DeviceError(f"bundle {folder} {fault}: export one for the GPU with {command}")


def runtime_on(
    device: str, folder: Path, manifest: Manifest, threads: int, gpus: float = 1, cuda_graphs: bool = False
) -> Runtime:
    """A runtime for the checked bundle in ``folder``; DeviceError when there can be none.

    On a GPU it has ``gpus`` of the memory, and may record steps (``cuda_graphs``, see `serving.runtime.cuda`).
    """
    check_device(folder, manifest, device, gpus)
    return unchecked_runtime(device, folder, manifest, threads, gpus, cuda_graphs)


def unchecked_runtime(
    device: str, folder: Path, manifest: Manifest, threads: int, gpus: float, cuda_graphs: bool
) -> Runtime:
    """`runtime_on` for a bundle that only a benchmark reads, and that need not have probes."""
    if device == "cpu":
        return CpuRuntime(folder, manifest, threads)
    from serving.runtime.cuda import CudaDevice
    from serving.runtime.device_runtime import DeviceRuntime

    with faults_of(device):
        ort.load_cuda()  # whoever allocates on the GPU needs it, too
        return DeviceRuntime(folder, manifest, CudaDevice(*_memory(manifest, gpus), cuda_graphs=cuda_graphs))


@contextlib.contextmanager
def faults_of(device: str) -> Iterator[None]:
    """Let what goes wrong on a GPU be DeviceError: ONNX Runtime's own errors are many kinds, and many lines."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        if device == "cpu":
            raise
        said = textwrap.shorten(str(error), 300, placeholder=" …")
        if FULL.search(said):
            raise DeviceError(
                "the GPU's memory is full, or what gpus leaves this replica: see who else uses it (nvidia-smi), or "
                f"choose a larger gpus, fewer rows or encode_tokens ({said})"
            ) from error
        raise DeviceError(f"the GPU cannot run the bundle: {said}") from error


def _memory(manifest: Manifest, gpus: float) -> tuple[int | None, int | None]:
    """Bytes of the GPU's memory that each graph may take for weights and work, and those that all arrays may, where
    replicas share it; else None and None.

    A replica has ``gpus`` of all the memory, less what CUDA itself takes. All graphs share half of that, each of which
    has memory of its own. The other half is for keys, values and encoded sources, which take a half of it at most:
    where they lie, ONNX Runtime takes memory in pieces twice as large as the last.
    """
    if gpus == 1:
        return None, None
    whole = gpu_memory()[0]
    half = (int(whole * gpus) - CONTEXT_BYTES) // 2
    graph = half // len((*GRAPHS, ADMIT, REORDER))
    least = manifest.files[WEIGHTS].bytes + WORK_BYTES
    if graph < least:
        raise DeviceError(
            f"gpus {gpus:g} of a GPU with {whole / 2**30:.1f} GiB leaves each graph {max(0, graph) >> 20} MiB, and "
            f"this bundle's want {least >> 20}: choose a larger gpus, so that fewer replicas share a GPU"
        )
    return graph, half // 2
