"""The seam to a device with memory of its own: what the runtime needs of it, and no more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.ort import onnxruntime

Array = NDArray[Any]
Shape = tuple[int, ...]


class DeviceArray(Protocol):
    """Numbers in the device's memory, contiguous, at an address that does not change. The host cannot read them."""

    @property
    def shape(self) -> Shape:
        """As numpy's."""

    @property
    def dtype(self) -> Any:
        """As numpy's."""

    @property
    def address(self) -> int:
        """Where it begins, in the device's memory."""


@dataclass(frozen=True)
class Part:
    """A contiguous part of a device's array, perhaps read as another type: itself an array of the device."""

    whole: DeviceArray
    offset: int
    """Bytes from the beginning of the whole."""
    shape: Shape
    dtype: Any

    @property
    def address(self) -> int:
        """See `DeviceArray`."""
        return self.whole.address + self.offset


class Device(Protocol):
    """Allocates, copies to and fro, and runs graphs."""

    def zeros(self, shape: Shape, dtype: Any) -> DeviceArray:
        """An array of zeros."""

    def empty(self, shape: Shape, dtype: Any) -> DeviceArray:
        """An array of anything, perhaps not even numbers: for what is written before it is read."""

    def array(self, values: Array) -> DeviceArray:
        """A new array with ``values``."""

    def upload(self, values: Array, array: DeviceArray) -> None:
        """Copy ``values`` over all of ``array``, which has their shape and dtype and is no `Part`."""

    def download(self, array: DeviceArray) -> Array:
        """A copy of ``array``, which is no `Part`, in the host's memory."""

    def session(self, graph: Path, repeated: bool = False) -> onnxruntime.InferenceSession:
        """A session that computes ``graph`` on this device; ``repeated`` says that it runs often with the same arrays.

        RuntimeError when some of it would be computed elsewhere.
        """

    def bind(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        host_inputs: Mapping[str, Array],
    ) -> Callable[[], None]:
        """A call that runs ``session`` on ``inputs`` where they lie, and returns when ``outputs`` are written.

        An array may be both an input and an output. ``host_inputs`` are what its operators want in the host's memory;
        they must not change.
        """


class Block:
    """Small arrays side by side in one piece of memory on both sides, so that one copy moves them all."""

    def __init__(self, device: Device, specs: Mapping[str, tuple[Shape, Any]]) -> None:
        """``specs``: shapes and dtypes by name, those with the larger numbers first, so that all are aligned."""
        sizes = {name: prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in specs.items()}
        self._device = device
        self._host = np.zeros(sum(sizes.values()), np.uint8)
        self._array = device.zeros(self._host.shape, np.uint8)
        self.parts: dict[str, DeviceArray] = {}
        """Where they lie in the device's memory."""
        self._places: dict[str, tuple[int, int, Shape, Any]] = {}
        offset = 0
        for name, (shape, dtype) in specs.items():
            assert offset % np.dtype(dtype).itemsize == 0
            self._places[name] = offset, offset + sizes[name], shape, dtype
            self.parts[name] = Part(self._array, offset, shape, np.dtype(dtype))
            offset += sizes[name]
        self.values = self._read(self._host)
        """In the host's memory: what `upload` sends."""

    def upload(self) -> None:
        """Send `values` to the device."""
        self._device.upload(self._host, self._array)

    def download(self) -> dict[str, Array]:
        """What the device holds."""
        return self._read(self._device.download(self._array))

    def _read(self, whole: Array) -> dict[str, Array]:
        return {
            name: whole[begin:end].view(dtype).reshape(shape)
            for name, (begin, end, shape, dtype) in self._places.items()
        }
