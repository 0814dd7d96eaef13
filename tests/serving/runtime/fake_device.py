"""A device that is none: its memory is numpy's, but whoever reads it from the host without asking fails."""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ort
from export.bundle import read_manifest
from export.ort import onnxruntime
from serving.runtime.device import Device, DeviceArray, Part, Shape
from serving.runtime.device_runtime import DeviceRuntime

Array = NDArray[Any]


class HostAccess(AssertionError):
    """The host has touched the device's memory."""


class FakeArray:
    """An array of the fake device: numpy can do nothing with it."""

    def __init__(self, values: Array) -> None:
        self._values = values

    @property
    def shape(self) -> Shape:
        return self._values.shape

    @property
    def dtype(self) -> Any:
        return self._values.dtype

    @property
    def address(self) -> int:
        return self._values.ctypes.data

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise HostAccess("an array of the device was read as one of the host")

    __getitem__ = __setitem__ = __iter__ = __len__ = __bool__ = __float__ = __int__ = __array__


class FakeDevice:
    """`serving.runtime.device.Device` in the host's memory, which notices what would fail, or go wrong, on a real one."""

    def __init__(self) -> None:
        self.runs = self.moved = 0
        """Graphs run, and bytes copied to the device or back."""

    def zeros(self, shape: Shape, dtype: Any) -> FakeArray:
        return FakeArray(np.zeros(shape, dtype))

    def empty(self, shape: Shape, dtype: Any) -> FakeArray:
        # Whoever reads them before they are written will notice.
        return FakeArray(np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 99, dtype))

    def array(self, values: Array) -> FakeArray:
        array = self.zeros(values.shape, values.dtype)
        self.upload(values, array)
        return array

    def upload(self, values: Array, array: DeviceArray) -> None:
        if not isinstance(values, np.ndarray):
            raise HostAccess("what is uploaded is no array of the host")
        target = self._of(array)
        assert (values.shape, values.dtype) == (target.shape, target.dtype)
        self.moved += values.nbytes
        target[...] = values

    def download(self, array: DeviceArray) -> Array:
        values = self._of(array).copy()
        self.moved += values.nbytes
        return values

    def session(self, graph: Path, repeated: bool = False) -> onnxruntime.InferenceSession:
        return ort.session(graph, threads=1)

    def bind(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        host_inputs: Mapping[str, Array],
    ) -> Callable[[], None]:
        assert {value.name for value in session.get_inputs()} == {*inputs, *host_inputs}
        assert {value.name for value in session.get_outputs()} >= {*outputs}
        binding = session.io_binding()
        for name, values in host_inputs.items():
            assert isinstance(values, np.ndarray)
            binding.bind_cpu_input(name, values)
        for name, array in inputs.items():
            values = self._of(array)
            binding.bind_input(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        written = {name: self._of(array) for name, array in outputs.items()}
        for name, values in written.items():
            binding.bind_output(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
        # A real device knows addresses only; so whoever binds must keep the arrays, or this must.
        kept = [*inputs.values(), *outputs.values()]

        def run() -> None:
            assert kept
            self.runs += 1
            session.run_with_iobinding(binding)

        return run

    def _of(self, array: DeviceArray) -> Array:
        if isinstance(array, Part):
            size = prod(array.shape) * array.dtype.itemsize
            flat = self._of(array.whole).reshape(-1).view(np.uint8)[array.offset : array.offset + size]
            return flat.view(array.dtype).reshape(array.shape)
        if not isinstance(array, FakeArray):
            raise HostAccess("an array of the host was taken for one of the device")
        return array._values


def device_runtime(bundle: Path, device: Device | None = None) -> DeviceRuntime:
    return DeviceRuntime(bundle, read_manifest(bundle), device or FakeDevice())
