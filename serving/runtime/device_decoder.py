"""The decoder graph on a device: caches stay there, one small block of numbers goes there and one comes back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.bundle import LOG_SOFTMAX, Manifest
from export.ort import onnxruntime
from serving.runtime.bindings import Bindings
from serving.runtime.device import Block, Device, DeviceArray, first_rows
from serving.runtime.device_cache import DeviceCache
from serving.runtime.row_state import IDLE, RowState
from serving.runtime.step_result import StepArrays

Array = NDArray[Any]


class Bound(NamedTuple):
    """A step for a number of rows and k, ready to run."""

    run: Callable[[], None]
    inputs: Block
    """What a step reads of each row besides keys and values, ``[rows]`` each."""
    outputs: Block


class DeviceDecoder:
    """Steps over one cache and one state (`serving.runtime.batch.Decoder`)."""

    def __init__(
        self,
        device: Device,
        manifest: Manifest,
        session: onnxruntime.InferenceSession,
        cache: DeviceCache,
        state: RowState,
    ) -> None:
        self._device, self._session = device, session
        self._cache, self._state = cache, state
        self._vocabulary = manifest.model.vocabulary
        self.packed = not device.fixed_rows
        self.gives_log_softmax = manifest.gives_log_softmax
        self._log_softmax: DeviceArray | None = None
        """Room for the log-probabilities of all tokens in all rows, shared by all that is bound."""
        self._bindings: Bindings[Bound] = Bindings()

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        """See `serving.runtime.batch.Decoder`."""
        self._cache.settle()
        taken = rows if self.packed else self._cache.rows
        (run, inputs, outputs), _ = self._bindings.get((taken, k, whole), lambda: self._bind(taken, k, whole))
        for name, values in inputs.values.items():
            values[:rows] = self._state.inputs[name][:rows]
            values[rows:] = IDLE[name]
        inputs.upload()
        run()
        arrays = {name: values[:rows] for name, values in outputs.download().items()}
        every = None
        if whole:
            assert self._log_softmax is not None
            every = self._device.download(self._log_softmax)[:rows]
        return StepArrays(arrays["tokens"], arrays["log_probabilities"], arrays["given_log_probability"], every)

    def _bind(self, rows: int, k: int, whole: bool) -> Bound:
        device = self._device
        by_size = sorted(self._state.inputs.items(), key=lambda item: -item[1].itemsize)
        inputs = Block(device, {name: ((rows,), values.dtype) for name, values in by_size})
        outputs = Block(
            device,
            {
                "tokens": ((rows, k), np.int64),
                "log_probabilities": ((rows, k), np.float32),
                "given_log_probability": ((rows,), np.float32),
            },
        )
        caches: dict[str, DeviceArray] = {name: first_rows(array, rows) for name, array in self._cache.arrays.items()}
        written = {f"{name}_out": array for name, array in caches.items() if not name.startswith("last")}
        every: dict[str, DeviceArray] = {}
        if whole:
            if self._log_softmax is None:
                self._log_softmax = device.empty((self._cache.rows, self._vocabulary), np.float32)
            every[LOG_SOFTMAX] = first_rows(self._log_softmax, rows)
        run = device.bind(self._session, inputs.parts | caches, outputs.parts | written | every, {"k": np.array([k])})
        return Bound(run, inputs, outputs)
