"""NVIDIA's driver as this machine may not have it: what its library answers is planted."""

import ctypes
from dataclasses import dataclass
from typing import Any

import pytest

from serving.runtime import cuda_driver

REASONS = {100: b"no CUDA-capable device is detected", 999: b"unknown error"}


@dataclass
class FakeDriver:
    """The functions of libcuda.so.1 that are called, as ctypes calls them."""

    memory: tuple[int, ...] = (80 << 30,)
    """Bytes of each GPU."""
    version: int = 13000
    started: int = 0
    """What cuInit returns."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.started

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.memory)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = self.memory[device.value]
        return 0

    def cuGetErrorString(self, code: int, said: Any) -> int:  # noqa: N802
        said._obj.value = REASONS[code]
        return 0


def plant(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None) -> None:
    """Let ``driver`` be what is found here; None, nothing."""
    real = ctypes.CDLL

    def load(name: Any, *arguments: Any, **named: Any) -> Any:
        if name != cuda_driver.LIBRARY:
            return real(name, *arguments, **named)
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    # The CPU's package was built for none.
    monkeypatch.setattr(cuda_driver.onnxruntime, "cuda_version", "13.0")
