"""The decoder graph on a device: caches stay there, small arrays go to and fro."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.bundle import LOG_SOFTMAX, Manifest
from export.ort import onnxruntime
from serving.runtime.bindings import Bindings
from serving.runtime.device import Device, DeviceArray, FirstRows
from serving.runtime.device_cache import DeviceCache
from serving.runtime.row_state import RowState
from serving.runtime.step_result import StepArrays

Array = NDArray[Any]


class Bound(NamedTuple):
    """A step for a number of rows and k, ready to run."""

    run: Callable[[], None]
    inputs: dict[str, DeviceArray]
    """What a step reads of each row besides keys and values, ``[rows]`` each."""
    outputs: dict[str, DeviceArray]


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
        self.gives_log_softmax = manifest.gives_log_softmax
        self._log_softmax: DeviceArray | None = None
        """Room for the log-probabilities of all tokens in all rows, shared by all that is bound."""
        self._bindings: Bindings[Bound] = Bindings()

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        """See `serving.runtime.batch.Decoder`."""
        self._cache.settle()
        (run, inputs, outputs), _ = self._bindings.get((rows, k, whole), lambda: self._bind(rows, k, whole))
        for name, array in inputs.items():
            self._device.upload(self._state.inputs[name][:rows], array)
        run()
        tokens, likely, given = (self._device.download(array) for array in outputs.values())
        every = None
        if whole:
            assert self._log_softmax is not None
            every = self._device.download(self._log_softmax)[:rows]
        return StepArrays(tokens, likely, given, every)

    def _bind(self, rows: int, k: int, whole: bool) -> Bound:
        device = self._device
        inputs = {name: device.zeros((rows,), values.dtype) for name, values in self._state.inputs.items()}
        outputs = {
            "tokens": device.zeros((rows, k), np.int64),
            "log_probabilities": device.zeros((rows, k), np.float32),
            "given_log_probability": device.zeros((rows,), np.float32),
        }
        caches: dict[str, DeviceArray] = {name: FirstRows(array, rows) for name, array in self._cache.arrays.items()}
        written = {f"{name}_out": array for name, array in caches.items() if not name.startswith("last")}
        every: dict[str, DeviceArray] = {}
        if whole:
            if self._log_softmax is None:
                self._log_softmax = device.zeros((self._cache.rows, self._vocabulary), np.float32)
            every[LOG_SOFTMAX] = FirstRows(self._log_softmax, rows)
        run = device.bind(self._session, inputs | caches, outputs | written | every, {"k": np.array([k])})
        return Bound(run, inputs, outputs)
