"""A bundle's graphs in ONNX Runtime: sessions, threads, providers, buffers bound in place."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from export import ort
from export.bundle import LOG_SOFTMAX, POOLING, BundleError, Manifest
from export.ort import onnxruntime
from model.tokenizer import PADDING
from serving.cache import KeyValueCache
from serving.found import Found

Array = NDArray[Any]
Result = TypeVar("Result")
Way = Literal["alone", "shared", "lanes"]
"""How a step is computed: by the calling thread alone; by all threads, which divide each product among them and meet
after every node; or by each thread for rows of its own, through the whole graph, so that they meet once."""
_Bound = tuple[list[Callable[[], None]], Found]
"""A step's lanes, and the arrays they write to."""
ALIGNMENT = 8
"""Source lengths are padded to a multiple of this; then a sentence's numbers do not depend on the padding."""
CLEARLY = 0.9
"""What another way's share of the time of a lone thread must be below to be preferred: threads that have to meet suffer
more when others want the cores as well."""
TRIED_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of rows for which the ways are timed."""
TRIED_POSITION = 24
"""Source tokens of each row, and target tokens written."""
TRIALS = 7
"""Times each way is timed; the median counts."""
MOST_BOUND = 128
"""Numbers of rows and k whose bindings are kept at one time, 30 KiB each; those used longest ago go first."""


@dataclass(frozen=True)
class EncodedBatch:
    """What the encoder gives for a batch."""

    memory: Array
    """``[rows, source, width]`` fp32."""
    caches: dict[str, Array]
    """``cross_key_0`` and so on, ``[rows, heads, source, head_width]``, of the caches' dtype."""

    @property
    def positions(self) -> int:
        """Of each row, padding included."""
        return int(self.memory.shape[1])


def pad(rows: list[list[int]]) -> tuple[Array, Array]:
    """``[len(rows), longest]`` int64, the longest rounded up to `ALIGNMENT`, and lengths ``[len(rows)]`` int32."""
    lengths = np.array([len(ids) for ids in rows], np.int32)
    padded = np.full((len(rows), -(-int(lengths.max()) // ALIGNMENT) * ALIGNMENT), PADDING, np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths


class StepState:
    """What a step reads of each row besides its caches; written by the engine, read in place."""

    def __init__(self, rows: int) -> None:
        self.inputs: dict[str, Array] = {
            "token": np.zeros(rows, np.int64),
            "position": np.zeros(rows, np.int32),
            "lengths": np.zeros(rows, np.int32),
            "given": np.zeros(rows, np.int64),
        }
        self.token, self.position, self.lengths, self.given = self.inputs.values()

    def copy(self, origins: Sequence[int], rows: Sequence[int]) -> None:
        """Copy rows over others, all at once."""
        for array in self.inputs.values():
            array[rows] = array[origins]


def check_device(folder: Path, manifest: Manifest, device: str) -> str:
    """The provider for ``device`` ("cpu" or "cuda"); BundleError when it is not there or cannot run the bundle."""
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    faults = []
    if provider not in onnxruntime.get_available_providers():
        faults.append(f"{device} was asked for, but this onnxruntime has no {provider}")
    if device == "cuda" and manifest.precision == "int8":
        faults.append("int8 is for the CPU")
    if faults:
        raise BundleError(folder, faults)
    return provider


class Runtime:
    """The graphs of a checked bundle on one device. Not for use from several threads at a time.

    A step's ``threads`` are spent in one of the `Way` s there are, whichever `tune` found fastest for so many rows. No
    row's numbers depend on it, since none depend on the other rows or on the number of threads.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int, device: str = "cpu") -> None:
        self.manifest = manifest
        provider = check_device(folder, manifest, device)
        self.lanes = threads if device == "cpu" else 1

        def session(name: str, threads: int) -> onnxruntime.InferenceSession:
            return ort.session(folder / f"{name}.onnx", threads, provider)

        # Pooling is a few small products: threads would cost more than they save.
        self._shared = {name: session(name, 1 if name == POOLING else threads) for name in manifest.graphs}
        # One session serves all lanes: with one thread it runs in the thread that calls it. The weights of encoder and
        # decoder are in memory twice then.
        self._own = {name: session(name, 1) for name in ("encoder", "decoder")} if self.lanes > 1 else self._shared
        self._pool = ThreadPoolExecutor(max(1, self.lanes - 1), thread_name_prefix="lane")
        self._ways: dict[int, Way] = {0: "shared"}
        """The way of a step, from so many rows on."""
        self._owners: tuple[KeyValueCache, StepState] | None = None
        """Whose addresses are bound."""
        self._log_softmax = np.empty((0, manifest.model.vocabulary), np.float32)
        """Room for the log-probabilities of all tokens, for as many rows as there may be; shared by all bindings."""
        self._bound: dict[tuple[int, int, bool], _Bound] = {}
        self._cache_names = [
            spec.name
            for spec in manifest.graphs["decoder"].inputs
            if spec.name.startswith(("self_", "cross_", "last_"))
        ]

    def cache(self, rows: int) -> KeyValueCache:
        """Memory for at most ``rows`` hypotheses being decoded."""
        model, limits = self.manifest.model, self.manifest.limits
        positions = limits.target_tokens, limits.source_tokens
        return KeyValueCache(
            self._cache_names, model.heads, model.head_width, rows, positions, self.manifest.cache.dtype
        )

    @property
    def gives_log_softmax(self) -> bool:
        """Whether a step can give the log-probabilities of all tokens; bundles written before cannot."""
        return any(spec.name == LOG_SOFTMAX for spec in self.manifest.graphs["decoder"].outputs)

    def tune(self, most: int) -> None:
        """Find the fastest way to take a step, for up to ``most`` rows, by trying; seconds for a large model."""
        if self.lanes == 1:
            return
        rows = min(most, TRIED_ROWS[-1])
        cache, state = self.cache(rows), StepState(rows)
        state.position[:] = state.lengths[:] = TRIED_POSITION
        for tried in (count for count in TRIED_ROWS if count <= rows):
            ways: list[Way] = ["alone", "shared", "lanes"] if tried >= self.lanes else ["alone", "shared"]
            seconds = {way: self._seconds(cache, state, tried, way) for way in ways}
            best = min(ways, key=seconds.__getitem__)
            self._ways[tried] = best if seconds[best] < CLEARLY * seconds["alone"] else "alone"

    def _seconds(self, cache: KeyValueCache, state: "StepState", rows: int, way: Way) -> float:
        """How long a step takes in a ``way``."""
        steps, _ = self._bind(cache, state, rows, 2, way)
        taken = []
        for _ in range(TRIALS + 1):
            begin = time.perf_counter()
            self._take(steps)
            taken.append(time.perf_counter() - begin)
        return float(np.median(taken[1:]))  # the first allocates

    def encode(self, batches: Sequence[list[list[int]]]) -> Iterator[EncodedBatch | Exception]:
        """Run the encoder on each of ``batches`` of sources, as the results are asked for; they come in order.

        A batch that fails gives its exception; it is no matter to the others.
        """
        for begin in range(0, len(batches), self.lanes):
            dealt = batches[begin : begin + self.lanes]
            session = (self._own if len(dealt) > 1 else self._shared)["encoder"]
            yield from self._side_by_side([partial(self._encode, session, batch) for batch in dealt])

    def _side_by_side(self, calls: Sequence[Callable[[], Result]]) -> list[Result | Exception]:
        """Results or exceptions of at most as many ``calls`` as there are lanes, the first made in this thread."""
        others = [self._pool.submit(_outcome, call) for call in calls[1:]]
        # Whichever fails, none still writes to the arrays that the others share with it when this returns.
        return [_outcome(calls[0]), *(other.result() for other in others)]

    def _encode(self, session: onnxruntime.InferenceSession, sources: list[list[int]]) -> EncodedBatch:
        padded, lengths = pad(sources)
        names = [spec.name for spec in self.manifest.graphs["encoder"].outputs]
        found = session.run(names, {"source": padded, "lengths": lengths})
        outputs = dict(zip(names, found, strict=True))
        return EncodedBatch(outputs.pop("memory"), outputs)

    def step(self, cache: KeyValueCache, state: "StepState", rows: int, k: int, whole: bool = False) -> Found:
        """One decoding step for the first ``rows`` rows of ``cache`` and ``state``, each at its own position.

        The caches are written in place. ``whole`` asks for the log-probabilities of all tokens too, where the bundle
        has them (`gives_log_softmax`).
        """
        # Binding costs about as much as a small step, and rows come and go: what was bound is kept.
        if (cache, state) != self._owners:
            self._owners = cache, state
            self._bound.clear()
        if whole and len(self._log_softmax) < cache.rows:
            self._log_softmax = np.empty((cache.rows, self.manifest.model.vocabulary), np.float32)
        bound = self._bound.pop((rows, k, whole), None)
        if bound is None:
            way = self._ways[max(count for count in self._ways if count <= rows)]
            bound = self._bind(cache, state, rows, k, way, whole)
            if len(self._bound) == MOST_BOUND:
                del self._bound[next(iter(self._bound))]
        self._bound[rows, k, whole] = bound
        steps, found = bound
        self._take(steps)
        return found

    def _take(self, steps: Sequence[Callable[[], None]]) -> None:
        """Take a step, each lane its part; raises what went wrong with the first that did."""
        for outcome in self._side_by_side(steps):
            if isinstance(outcome, Exception):
                raise outcome

    def _bind(
        self, cache: KeyValueCache, state: "StepState", rows: int, k: int, way: Way, whole: bool = False
    ) -> _Bound:
        found = Found(
            np.empty((rows, k), np.int64),
            np.empty((rows, k), np.float32),
            np.empty(rows, np.float32),
            self._log_softmax[:rows] if whole else None,
        )
        written = {"tokens": found.tokens, "log_probabilities": found.log_probabilities}
        written["given_log_probability"] = found.given
        if found.log_softmax is not None:
            written[LOG_SOFTMAX] = found.log_softmax
        lanes = self.lanes if way == "lanes" else 1
        session = (self._shared if way == "shared" else self._own)["decoder"]
        steps: list[Callable[[], None]] = []
        for lane in range(lanes):
            part = slice(rows * lane // lanes, rows * (lane + 1) // lanes)
            caches = {name: array[part] for name, array in cache.arrays.items()}
            inputs = {name: array[part] for name, array in state.inputs.items()} | {"k": np.array([k])} | caches
            outputs = {name: array[part] for name, array in written.items()}
            outputs |= {f"{name}_out": array for name, array in caches.items() if array.ndim == 4}
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            steps.append(partial(_step, session, binding, (inputs, outputs)))
        return steps, found

    def pool(self, memory: Array) -> Array:
        """The vector ``[width]`` fp32, of length 1, of one text's ``memory`` ``[tokens, width]``."""
        feeds = {"memory": memory[None], "lengths": np.array([len(memory)], np.int32)}
        vectors: Array
        [vectors] = self._shared[POOLING].run(["vectors"], feeds)
        return vectors[0]

    def attention(self, source: list[int], target: list[int]) -> dict[str, Array]:
        """Weights and scores of one pair by name, such as ``decoder.1.cross.weights`` ``[heads, target, source]``."""
        names = [spec.name for spec in self.manifest.graphs["attention"].outputs]
        feeds = {
            "source": np.array([source], np.int64),
            "lengths": np.array([len(source)], np.int32),
            "target": np.array([target], np.int64),
        }
        found = self._shared["attention"].run(names, feeds)
        return {name: array[0] for name, array in zip(names, found, strict=True)}


def _outcome(call: Callable[[], Result]) -> Result | Exception:
    """What ``call`` returns, or raises."""
    try:
        return call()
    except Exception as error:
        return error


def _step(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, bound: object) -> None:
    """Run what is bound; ``bound`` holds the arrays, of which the binding knows the addresses only."""
    session.run_with_iobinding(binding)
