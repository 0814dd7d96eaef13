"""The decoder graph on the CPU: buffers bound in place, and a step's threads spent as is fastest."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import LOG_SOFTMAX, Manifest
from export.ort import onnxruntime
from serving.runtime.bindings import Bindings
from serving.runtime.cache import KeyValueCache
from serving.runtime.lanes import Lanes
from serving.runtime.row_state import RowState
from serving.runtime.step_result import StepArrays
from serving.runtime.threading_strategy import Strategy, ThreadingStrategy

Array = NDArray[Any]
Bound = tuple[list[Callable[[], None]], StepArrays]
"""A step's lanes, and the arrays they write to."""
TRIED_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of rows for which the strategies are timed at the start."""
TRIED_POSITION = 24
"""Source tokens of each row, and target tokens written, in these trials."""
TRIALS = 5
"""Times each is timed; the median counts."""


class CpuDecoder:
    """Steps over one cache and one state (`serving.runtime.batch.Decoder`).

    No row's numbers depend on how the threads are spent: none depend on the other rows or on the number of threads.
    """

    packed = True

    def __init__(
        self,
        manifest: Manifest,
        sessions: tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession],
        lanes: Lanes,
        cache: KeyValueCache,
        state: RowState,
    ) -> None:
        """``sessions`` of the decoder: one whose threads divide each product, one for a single thread."""
        self._shared, self._own = sessions
        self._vocabulary = manifest.model.vocabulary
        self._lanes, self._cache, self._state = lanes, cache, state
        self.gives_log_softmax = manifest.gives_log_softmax
        self.strategy = ThreadingStrategy(lanes.count)
        self._log_softmax = np.empty((0, self._vocabulary), np.float32)
        """Room for the log-probabilities of all tokens, for as many rows as there may be; shared by all bindings."""
        self._bindings: Bindings[Bound] = Bindings()

    def tune(self) -> None:
        """Time a step of several numbers of rows with each strategy; seconds for a large model.

        Rows must not be in use: the trials write to them.
        """
        if self._lanes.count == 1:
            return
        self._state.position[:] = self._state.lengths[:] = TRIED_POSITION
        for rows in (rows for rows in TRIED_ROWS if rows <= self._cache.rows):
            taken: dict[Strategy, list[float]] = {strategy: [] for strategy in self.strategy.possible(rows)}
            # In turns: whatever else happens on the machine meanwhile happens to all of them.
            for _ in range(TRIALS + 1):
                for strategy, seconds in taken.items():
                    seconds.append(self._timed(rows, 2, False, strategy)[1])
            # The first allocates.
            self.strategy.begin(rows, {name: statistics.median(seconds[1:]) for name, seconds in taken.items()})
        self._bindings.clear()
        self._state.position[:] = self._state.lengths[:] = 0

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        """See `serving.runtime.batch.Decoder`."""
        if self._lanes.count == 1:
            return self._timed(rows, k, whole, "single")[0]
        strategy = self.strategy.choose(rows, (k, whole))
        arrays, seconds, fresh = self._timed(rows, k, whole, strategy)
        # Where something was bound first, the graph allocates too.
        self.strategy.took(rows, strategy, None if fresh else seconds, (k, whole))
        return arrays

    def _timed(self, rows: int, k: int, whole: bool, strategy: Strategy) -> tuple[StepArrays, float, bool]:
        """Take a step, each lane its part; returns its seconds too, and whether it was bound anew.

        Raises what went wrong with the first lane that failed.
        """
        key = rows, k, whole, strategy
        (steps, arrays), fresh = self._bindings.get(key, lambda: self._bind(*key))
        begin = time.perf_counter()
        for outcome in self._lanes(steps):
            if isinstance(outcome, Exception):
                raise outcome
        return arrays, time.perf_counter() - begin, fresh

    def _bind(self, rows: int, k: int, whole: bool, strategy: Strategy) -> Bound:
        if whole and len(self._log_softmax) < self._cache.rows:
            self._log_softmax = np.empty((self._cache.rows, self._vocabulary), np.float32)
        arrays = StepArrays(
            np.empty((rows, k), np.int64),
            np.empty((rows, k), np.float32),
            np.empty(rows, np.float32),
            self._log_softmax[:rows] if whole else None,
        )
        written = {"tokens": arrays.tokens, "log_probabilities": arrays.log_probabilities}
        written["given_log_probability"] = arrays.given
        if arrays.log_softmax is not None:
            written[LOG_SOFTMAX] = arrays.log_softmax
        lanes = self._lanes.count if strategy == "lanes" else 1
        session = self._shared if strategy == "shared" else self._own
        steps: list[Callable[[], None]] = []
        for lane in range(lanes):
            part = slice(rows * lane // lanes, rows * (lane + 1) // lanes)
            caches = {name: array[part] for name, array in self._cache.arrays.items()}
            inputs = {name: array[part] for name, array in self._state.inputs.items()} | {"k": np.array([k])} | caches
            outputs = {name: array[part] for name, array in written.items()}
            outputs |= {f"{name}_out": array for name, array in caches.items() if array.ndim == 4}
            steps.append(_bound(session, inputs, outputs))
        return steps, arrays


def _bound(
    session: onnxruntime.InferenceSession, inputs: dict[str, Array], outputs: dict[str, Array]
) -> Callable[[], None]:
    """A call that runs ``session`` from ``inputs`` to ``outputs``, where they lie."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return partial(_run, session, binding, (inputs, outputs))


def _run(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, kept: Sequence[object]) -> None:
    """Run what is bound; ``kept`` holds the arrays, of which the binding knows the addresses only."""
    session.run_with_iobinding(binding)
