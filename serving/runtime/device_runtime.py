"""A bundle's graphs on a device with memory of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ort
from export.bundle import ADMIT, GRAPHS, POOLING, REORDER, BundleError, Manifest
from export.ort import onnxruntime
from serving.runtime import whole_graphs
from serving.runtime.batch import RowBatch
from serving.runtime.device import Device, DeviceArray
from serving.runtime.device_cache import DeviceCache
from serving.runtime.device_decoder import DeviceDecoder
from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.interface import EncoderCost
from serving.runtime.padding import pad
from serving.runtime.row_state import RowState

Array = NDArray[Any]

MOST = 16_384
ENCODER_COST = EncoderCost(lanes=1, batch_tokens=MOST, batch_positions=MOST, run_tokens=3000, token_pairs=3000)
"""``run_tokens`` is measured on an H200: a run of 32 tokens takes 1.4 ms, and one of 16,384 takes 7.7. ``token_pairs``
is computed: in a layer of 512 channels a token takes about 3,000 times the multiply-adds of a pair."""


@dataclass(frozen=True)
class DeviceEncodedBatch:
    """What the encoder gave for a batch (`serving.runtime.encoded_batch.EncodedBatch`)."""

    device: Device
    states: DeviceArray
    """The memory ``[rows, source, width]`` fp32."""
    caches: Mapping[str, DeviceArray]

    @property
    def positions(self) -> int:
        """Of each row, padding included."""
        return self.states.shape[1]

    def memory(self, index: int, length: int) -> Array:
        """See `EncodedBatch`."""
        return self._downloaded[index, :length]

    @cached_property
    def _downloaded(self) -> Array:
        return self.device.download(self.states)


class DeviceRuntime:
    """The graphs of a checked bundle (`serving.runtime.interface.Runtime`) on ``device``.

    BundleError when the bundle is one for the CPU.
    """

    encoder_cost = ENCODER_COST

    def __init__(self, folder: Path, manifest: Manifest, device: Device) -> None:
        if ADMIT not in manifest.graphs:
            raise BundleError(folder, ["it has graphs for the CPU alone: export the checkpoint in fp16"])
        self.manifest, self._device = manifest, device
        self._sessions = {
            name: device.session(folder / f"{name}.onnx", repeated=name == "decoder")
            for name in (*GRAPHS, ADMIT, REORDER)
        }
        # A few small products, for one text at a time.
        self._pooling = ort.session(folder / f"{POOLING}.onnx", threads=1) if POOLING in manifest.graphs else None

    def batch(self, rows: int) -> RowBatch:
        """See `Runtime`."""
        state = RowState(rows, self.manifest.model.max_positions)
        cache = DeviceCache(self._device, self.manifest, self._sessions[ADMIT], self._sessions[REORDER], rows)
        decoder = DeviceDecoder(self._device, self.manifest, self._sessions["decoder"], cache, state)
        return RowBatch(state, cache, decoder, self.manifest.model.vocabulary)

    def encode(self, batches: Sequence[list[list[int]]]) -> Iterator[DeviceEncodedBatch | Exception]:
        """See `Runtime`."""
        for batch in batches:
            try:
                yield self._encode(self._sessions["encoder"], batch)
            except Exception as error:
                yield error

    def _encode(self, session: onnxruntime.InferenceSession, sources: list[list[int]]) -> DeviceEncodedBatch:
        padded, lengths = pad(sources)
        model, device = self.manifest.model, self._device
        inputs = {"source": device.array(padded), "lengths": device.array(lengths)}
        outputs: dict[str, DeviceArray] = {}
        for spec in self.manifest.graphs["encoder"].outputs:
            count, positions = padded.shape
            cached = count, model.heads, positions, model.head_width
            shape = (count, positions, model.width) if spec.name == "memory" else cached
            outputs[spec.name] = device.empty(shape, np.dtype(spec.dtype))
        device.bind(session, inputs, outputs, {})()
        return DeviceEncodedBatch(device, outputs.pop("memory"), outputs)

    def pool(self, encoded: EncodedBatch, index: int, length: int) -> Array:
        """See `Runtime`."""
        assert self._pooling
        return whole_graphs.pool(self._pooling, encoded.memory(index, length))

    def attention(self, source: list[int], target: list[int]) -> dict[str, Array]:
        """See `Runtime`."""
        return whole_graphs.attention(self._sessions["attention"], source, target)
