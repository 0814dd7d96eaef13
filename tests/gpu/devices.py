"""What computes in the checks on a card: the CPU, the card, or a fake device for rehearsals."""

from pathlib import Path

from export import ort
from export.bundle import read_manifest
from serving.cores import cores
from serving.runtime.device import Device
from serving.runtime.devices import PROVIDERS, runtime_on
from serving.runtime.interface import Runtime
from serving.settings import Settings
from tests.serving.runtime.fake_device import FakeDevice, device_runtime

DEVICES = (*PROVIDERS, "fake")


def settings_on(device: str) -> Settings:
    """The settings of a replica on ``device``; ``DRAGOMAN_CUDA_GRAPHS=true`` and others count."""
    return Settings(gpus=float(device == "cuda"))


def runtime(folder: Path, device: str) -> Runtime:
    """A runtime for the bundle in ``folder`` on one of `DEVICES`, as a replica has it."""
    if device == "fake":
        return device_runtime(folder, FakeDevice())
    settings = settings_on(device)
    return runtime_on(device, folder, read_manifest(folder), cores(), cuda_graphs=settings.cuda_graphs)


def device_for_faults(name: str) -> Device:
    """The device called ``name``, which has memory of its own; SystemExit for the CPU."""
    if name == "fake":
        return FakeDevice()
    if name != "cuda":
        raise SystemExit(f"faults are planted in cuda or fake, not in {name}")
    from serving.runtime.cuda import CudaDevice

    ort.load_cuda()
    return CudaDevice(cuda_graphs=settings_on(name).cuda_graphs)
