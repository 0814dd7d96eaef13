"""NVIDIA's GPUs as a device of the runtime (`serving.runtime.device.Device`), through ONNX Runtime's CUDA provider."""

import itertools
import weakref
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ort
from export.ort import onnxruntime
from serving.runtime.device import DeviceArray, Shape

Array = NDArray[Any]

SHAPE_OPERATORS = frozenset({"Squeeze", "Cast", "Gather", "Sqrt"})
"""What ONNX Runtime computes in the host's memory on purpose, where our graphs make a number of a shape."""


class CudaArray:
    """An array in the memory of the GPU."""

    def __init__(self, value: onnxruntime.OrtValue, shape: Shape, dtype: Any) -> None:
        self.value, self.shape, self.dtype = value, shape, np.dtype(dtype)
        self.address = int(value.data_ptr())


class CudaDevice:
    """The first GPU that the process sees.

    ``graph_bytes`` is what each graph takes at most for its weights and its work, and ``array_bytes`` what all arrays
    take; RuntimeError when there are more. With ``cuda_graphs``, what runs often with the same arrays is recorded at
    its first run. From then on it is launched as one, which leaves the processor little to do.
    """

    def __init__(
        self, graph_bytes: int | None = None, array_bytes: int | None = None, *, cuda_graphs: bool = False
    ) -> None:
        limit = {} if graph_bytes is None else {"gpu_mem_limit": str(graph_bytes)}
        # Where products of fp32 are rounded to TF32, they are no longer those of fp32. And a graph takes from the card
        # what it asks for, not twice as much as the last time.
        self._options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", **limit}
        self._cuda_graphs, self._recordings = cuda_graphs, itertools.count(1)
        self._array_bytes = array_bytes
        self.taken = 0
        """Bytes of all arrays that there are."""

    def zeros(self, shape: Shape, dtype: Any) -> CudaArray:
        """See `Device`."""
        return self.array(np.zeros(shape, dtype))

    def empty(self, shape: Shape, dtype: Any) -> CudaArray:
        """See `Device`."""
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return self._allocated(shape, dtype, lambda: make(shape, np.dtype(dtype).type, "cuda", 0))

    def array(self, values: Array) -> CudaArray:
        """See `Device`."""
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return self._allocated(values.shape, values.dtype, lambda: make(np.ascontiguousarray(values), "cuda", 0))

    def _allocated(self, shape: Shape, dtype: Any, allocate: Callable[[], onnxruntime.OrtValue]) -> CudaArray:
        """What ``allocate`` gives, counted for as long as it is there; RuntimeError when it would be too much."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if self._array_bytes is not None and self.taken + size > self._array_bytes:
            raise RuntimeError(
                f"out of memory: arrays take {self.taken >> 20} MiB of the {self._array_bytes >> 20} that they may, "
                f"and {size} bytes more are asked for"
            )
        array = CudaArray(allocate(), shape, dtype)
        self.taken += size
        weakref.finalize(array, self._give_back, size)
        return array

    def _give_back(self, size: int) -> None:
        self.taken -= size

    def upload(self, values: Array, array: DeviceArray) -> None:
        """See `Device`."""
        _value(array).update_inplace(values)

    def download(self, array: DeviceArray) -> Array:
        """See `Device`."""
        values: Array = _value(array).numpy()
        return values

    def session(self, graph: Path, repeated: bool = False) -> onnxruntime.InferenceSession:
        """See `Device`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        recorded = {"enable_cuda_graph": "1"} if repeated and self._cuda_graphs else {}
        session = ort.cuda_session(graph, options, self._options | recorded)
        if elsewhere := sorted(_elsewhere(session)):
            raise RuntimeError(f"{graph.name}: {', '.join(elsewhere)} would not be computed on the GPU")
        return session

    def bind(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        host_inputs: Mapping[str, Array],
    ) -> Callable[[], None]:
        """See `Device`."""
        return _Run(session, inputs, outputs, host_inputs, next(self._recordings))


class _Run:
    """A session bound to arrays."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        host_inputs: Mapping[str, Array],
        recording: int,
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        # The binding knows the addresses only.
        self._kept = [*inputs.values(), *outputs.values(), *host_inputs.values()]
        for name, values in host_inputs.items():
            self._binding.bind_cpu_input(name, values)
        for name, array in inputs.items():
            self._binding.bind_input(name, "cuda", 0, array.dtype.type, array.shape, array.address)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cuda", 0, array.dtype.type, array.shape, array.address)
        self._options = onnxruntime.RunOptions()
        if session.get_provider_options()[ort.CUDA]["enable_cuda_graph"] == "1":
            # ONNX Runtime keeps a recording of each number in each thread, for as long as there is the session.
            self._options.add_run_config_entry("gpu_graph_id", str(recording))

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)


def _value(array: DeviceArray) -> onnxruntime.OrtValue:
    assert isinstance(array, CudaArray)
    return array.value


def _elsewhere(session: onnxruntime.InferenceSession) -> set[str]:
    """The operators of ``session`` that are not computed on the GPU and should be."""
    return {
        f"{node.op_type} ({node.name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != ort.CUDA
        for node in part.get_nodes()
        if node.op_type not in SHAPE_OPERATORS
    }
