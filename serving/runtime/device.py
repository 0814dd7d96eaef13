"""The seam to a device with memory of its own: what the runtime needs of it, and no more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
class FirstRows:
    """The first rows of an array of the device: itself one."""

    array: DeviceArray
    rows: int

    @property
    def shape(self) -> Shape:
        """As numpy's."""
        return (self.rows, *self.array.shape[1:])

    @property
    def dtype(self) -> Any:
        """As numpy's."""
        return self.array.dtype

    @property
    def address(self) -> int:
        """That of the whole."""
        return self.array.address


class Device(Protocol):
    """Allocates, copies to and fro, and runs graphs."""

    def zeros(self, shape: Shape, dtype: Any) -> DeviceArray:
        """An array of zeros."""

    def upload(self, values: Array, array: DeviceArray) -> None:
        """Copy ``values`` over all of ``array``, which has their shape and dtype."""

    def download(self, array: DeviceArray) -> Array:
        """A copy of ``array`` in the host's memory."""

    def session(self, graph: Path) -> onnxruntime.InferenceSession:
        """A session that computes ``graph`` on this device."""

    def bind(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        host_inputs: Mapping[str, Array],
    ) -> Callable[[], None]:
        """A call that runs ``session`` on ``inputs`` where they lie, and returns when ``outputs`` are written.

        An array may be both an input and an output. ``host_inputs`` are what its operators want in the host's memory.
        """
