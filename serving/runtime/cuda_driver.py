"""NVIDIA's driver, asked without starting anything on a GPU: which GPUs this process may use, and their memory.

It comes with the card, needs no package, and knows of CUDA_VISIBLE_DEVICES and of parts of a card (MIG).
"""

import ctypes
import re
from typing import Any

from export.ort import onnxruntime

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""


class DriverError(RuntimeError):
    """There is no GPU that can be used; the message is one line that says why, and what to do."""


def gpu_memory() -> list[int]:
    """Bytes of memory of each GPU that this process may use, at least one; DriverError when there is none."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        raise DriverError(
            f"there is no driver for NVIDIA's GPUs here ({LIBRARY} cannot be loaded): install it, start the container "
            "with a GPU, or leave gpus out"
        ) from None
    code = driver.cuInit(0)
    if code != NO_DEVICE:
        _check(driver, code, "be started")
        _check_version(driver)
    count = ctypes.c_int()
    if code != NO_DEVICE:
        _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)), "count its GPUs")
    if not count.value:
        raise DriverError("NVIDIA's driver sees no GPU here: see what nvidia-smi and CUDA_VISIBLE_DEVICES say")
    return [_memory(driver, number) for number in range(count.value)]


def _memory(driver: Any, number: int) -> int:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), number), "name its GPUs")
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(size), device), "say how much memory its GPUs have")
    return size.value


def _check_version(driver: Any) -> None:
    """DriverError when the driver is older than the CUDA that this ONNX Runtime was built for: a newer one will do."""
    version = ctypes.c_int()
    _check(driver, driver.cuDriverGetVersion(ctypes.byref(version)), "say its version")
    has = version.value // 1000, version.value % 1000 // 10
    built = re.match(r"(\d+)", onnxruntime.cuda_version)
    # Within one major version, libraries run with a driver of any minor one.
    if built and has[0] < int(built[1]):
        raise DriverError(
            f"NVIDIA's driver here is for CUDA {has[0]}.{has[1]}, and this onnxruntime-gpu for CUDA {built[1]}: "
            "install a newer driver"
        )


def _check(driver: Any, code: int, what: str) -> None:
    if code:
        said = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(said))
        reason = said.value.decode() if said.value else "an unknown error"
        raise DriverError(f"NVIDIA's driver cannot {what}: {reason} (CUDA error {code}); see what nvidia-smi says")
