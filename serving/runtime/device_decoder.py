"""The decoder graph on a device: caches stay there, one small block of numbers goes there and one comes back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.ort import onnxruntime
from serving.runtime.bindings import Bindings
from serving.runtime.device import Block, Device
from serving.runtime.device_cache import DeviceCache
from serving.runtime.row_state import IDLE, RowState
from serving.runtime.step_result import StepArrays

Array = NDArray[Any]


class Bound(NamedTuple):
    """A step for a k, ready to run."""

    run: Callable[[], None]
    inputs: Block
    """What a step reads of each row besides keys and values, ``[rows]`` each."""
    outputs: Block


class DeviceDecoder:
    """Steps over one cache and one state (`serving.runtime.batch.Decoder`).

    Every step takes all rows there is room for, those that nobody uses too. On a GPU they cost next to nothing, and how
    its libraries multiply depends on how many rows there are: so a row's numbers do not depend on the others.
    """

    packed = gives_log_softmax = False
    """All tokens of all rows would be megabytes: who wants many tokens has them found on the device."""

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
        self._bindings: Bindings[Bound] = Bindings()

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        """See `serving.runtime.batch.Decoder`."""
        assert not whole
        self._cache.settle()
        k = min(1 << (k - 1).bit_length(), self._vocabulary)  # a few steps that are bound serve everybody
        (run, inputs, outputs), _ = self._bindings.get(k, lambda: self._bind(k))
        for name, values in inputs.values.items():
            values[:rows] = self._state.inputs[name][:rows]
            values[rows:] = IDLE[name]
        inputs.upload()
        run()
        arrays = {name: values[:rows] for name, values in outputs.download().items()}
        tokens, log_probabilities = arrays["tokens"], arrays["log_probabilities"]
        order_ties(tokens, log_probabilities)
        return StepArrays(tokens, log_probabilities, arrays["given_log_probability"], None)

    def _bind(self, k: int) -> Bound:
        device, rows = self._device, self._cache.rows
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
        caches = self._cache.arrays
        written = {f"{name}_out": array for name, array in caches.items() if not name.startswith("last")}
        run = device.bind(self._session, inputs.parts | caches, outputs.parts | written, {"k": np.array([k])})
        return Bound(run, inputs, outputs)


def order_ties(tokens: Array, log_probabilities: Array) -> None:
    """Let the lesser of two ``tokens`` ``[rows, k]`` that are equally likely come first, in place.

    A GPU gives them in an order that depends on k, and so on who shares the step.
    """
    for row in (log_probabilities[:, 1:] == log_probabilities[:, :-1]).any(axis=1).nonzero()[0]:
        tokens[row] = tokens[row, np.lexsort((tokens[row], -log_probabilities[row]))]
