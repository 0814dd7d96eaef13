"""A bundle's graphs in ONNX Runtime on the CPU."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from export import ort
from export.bundle import GRAPHS, POOLING, Manifest
from export.ort import onnxruntime
from serving.runtime import whole_graphs
from serving.runtime.batch import RowBatch
from serving.runtime.cache import KeyValueCache
from serving.runtime.cpu_decoder import CpuDecoder
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import EncoderCost
from serving.runtime.lanes import Lanes
from serving.runtime.padding import pad
from serving.runtime.row_state import RowState

Array = NDArray[Any]

BATCH_TOKENS = 256
"""More make no product faster, but push the states that pass between layers out of the processor's nearer caches."""
RUN_TOKENS, TOKEN_PAIRS = 8, 300
"""Measured; see `EncoderCost`."""


@dataclass(frozen=True)
class HostEncodedBatch:
    """What the encoder gave for a batch (`serving.runtime.encoded_batch.EncodedBatch`)."""

    states: Array
    """The memory ``[rows, source, width]`` fp32."""
    caches: dict[str, Array]
    """``cross_key_0`` and so on, ``[rows, heads, source, head_width]``, of the caches' dtype."""

    @property
    def positions(self) -> int:
        """Of each row, padding included."""
        return int(self.states.shape[1])

    def memory(self, index: int, length: int) -> Array:
        """See `EncodedBatch`."""
        return self.states[index, :length]


class CpuRuntime:
    """The graphs of a checked bundle (`serving.runtime.interface.Runtime`) in ``threads`` threads."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        self.manifest = manifest
        self.encoder_cost = EncoderCost(threads, BATCH_TOKENS, sys.maxsize, RUN_TOKENS, TOKEN_PAIRS)
        self._side_by_side = Lanes(threads)
        # Pooling is a few small products: threads would cost more than they save.
        names = [*GRAPHS, *([POOLING] if POOLING in manifest.graphs else [])]
        self._shared = {name: ort.session(folder / f"{name}.onnx", 1 if name == POOLING else threads) for name in names}
        # One session serves all lanes: with one thread it runs in the thread that calls it. The weights of encoder and
        # decoder are in memory twice then.
        self._own = (
            {name: ort.session(folder / f"{name}.onnx", 1) for name in ("encoder", "decoder")}
            if threads > 1
            else self._shared
        )

    def batch(self, rows: int) -> RowBatch:
        """See `Runtime`."""
        model, limits = self.manifest.model, self.manifest.limits
        cache_names = [spec.name for spec in self.manifest.caches]
        positions = limits.target_tokens, limits.source_tokens
        cache = KeyValueCache(cache_names, model.heads, model.head_width, rows, positions, self.manifest.cache.dtype)
        state = RowState(rows, model.max_positions)
        sessions = self._shared["decoder"], self._own["decoder"]
        decoder = CpuDecoder(self.manifest, sessions, self._side_by_side, cache, state)
        decoder.tune()
        return RowBatch(state, cache, decoder, model.vocabulary)

    def encode(self, batches: Sequence[list[list[int]]]) -> Iterator[HostEncodedBatch | Exception]:
        """See `Runtime`; batches are encoded as their results are asked for."""
        lanes = self.encoder_cost.lanes
        for begin in range(0, len(batches), lanes):
            dealt = batches[begin : begin + lanes]
            session = (self._own if len(dealt) > 1 else self._shared)["encoder"]
            yield from self._side_by_side([partial(self._encode, session, batch) for batch in dealt])

    def _encode(self, session: onnxruntime.InferenceSession, sources: list[list[int]]) -> HostEncodedBatch:
        padded, lengths = pad(sources)
        names = [spec.name for spec in self.manifest.graphs["encoder"].outputs]
        arrays = session.run(names, {"source": padded, "lengths": lengths})
        outputs = dict(zip(names, arrays, strict=True))
        return HostEncodedBatch(outputs.pop("memory"), outputs)

    def pool(self, encoded: EncodedBatch, index: int, length: int) -> Array:
        """See `Runtime`."""
        return whole_graphs.pool(self._shared[POOLING], encoded.memory(index, length))

    def attention(self, source: list[int], target: list[int]) -> dict[str, Array]:
        """See `Runtime`."""
        return whole_graphs.attention(self._shared["attention"], source, target)
