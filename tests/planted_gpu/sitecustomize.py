"""A GPU of 80 GiB for a real service, where there is none: it computes as `tests.serving.runtime.fake_device` does.

Python imports this at its start, in every process of a service that has this folder in its PYTHONPATH. Each device that
is made leaves a file in the folder GPUS with its process's CUDA_VISIBLE_DEVICES and its limit of memory, and cannot make
a session if there is a file "full".
"""

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType

DEVICES, CUDA = "serving.runtime.devices", "serving.runtime.cuda"


def _spoil(devices):
    devices.gpu_memory = lambda: [80 << 30]
    devices.onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _fill(cuda):
    from tests.serving.runtime.fake_device import FakeDevice

    folder = Path(os.environ["GPUS"])

    class CudaDevice(FakeDevice):
        def __init__(self, graph_bytes=None, array_bytes=None, *, cuda_graphs):
            super().__init__()
            (folder / str(os.getpid())).write_text(
                f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {graph_bytes} {array_bytes}"
            )

        def session(self, *arguments, **named):
            if (folder / "full").exists():
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ;\nfile=planted ; expr=cudaMalloc")
            return super().session(*arguments, **named)

    cuda.CudaDevice = CudaDevice


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec) if self._loader else ModuleType(spec.name)

    def exec_module(self, module):
        if self._loader:
            self._loader.exec_module(module)
            _spoil(module)
        else:
            _fill(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == CUDA:
            return importlib.machinery.ModuleSpec(name, _Loader(None))
        if name == DEVICES and (spec := importlib.machinery.PathFinder.find_spec(name, path)):
            spec.loader = _Loader(spec.loader)
            return spec
        return None


if "GPUS" in os.environ:
    sys.meta_path.insert(0, _Finder())
