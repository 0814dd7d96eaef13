"""Keys and values in a device's memory: rows are filled and copied there, by graphs of the bundle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest, capacity
from export.ort import onnxruntime
from serving.runtime.batch import CacheCopy
from serving.runtime.device import Device, DeviceArray
from serving.runtime.encoded_batch import EncodedBatch

Array = NDArray[Any]


class DeviceCache:
    """The caches of the decoder graph by input name (`serving.runtime.batch.Cache`).

    Sources wait in the host until the next copy or step, and then all of a batch are put into their rows at once.
    """

    def __init__(
        self,
        device: Device,
        manifest: Manifest,
        admit: onnxruntime.InferenceSession,
        reorder: onnxruntime.InferenceSession,
        rows: int,
    ) -> None:
        self.rows = rows
        self._device, self._admit, self._reorder = device, admit, reorder
        model, limits = manifest.model, manifest.limits
        shapes = {
            "self": (rows, model.heads, capacity(limits.target_tokens), model.head_width),
            "cross": (rows, model.heads, capacity(limits.source_tokens), model.head_width),
            "last": (rows, 1, model.width),
        }
        self.arrays: dict[str, DeviceArray] = {}
        for spec in manifest.caches:
            self.arrays[spec.name] = device.zeros(shapes[spec.name.split("_")[0]], np.dtype(spec.dtype))
        self._waiting: dict[int, tuple[EncodedBatch, int, int]] = {}
        """By row: the batch, index and length of a source that has not been put there yet."""

    def store(self, row: int, encoded: EncodedBatch, index: int, length: int) -> None:
        """See `Cache`."""
        self._waiting[row] = encoded, index, length

    def forget(self, row: int) -> None:
        """See `Cache`; what waits for the row waits no more."""
        self._waiting.pop(row, None)

    def copy(self, copies: Sequence[CacheCopy]) -> None:
        """See `Cache`; rows are copied whole."""
        self.settle()
        rows = {
            "origin": np.array([copy.origin for copy in copies], np.int64),
            "row": np.array([copy.row for copy in copies], np.int64),
        }
        self._run(self._reorder, rows, self.arrays, {})

    def settle(self) -> None:
        """Put the sources that wait into their rows."""
        batches = {id(encoded): encoded for encoded, _, _ in self._waiting.values()}
        for encoded in batches.values():
            places = [(row, *place[1:]) for row, place in self._waiting.items() if place[0] is encoded]
            row, index, length = np.array(places, np.int64).T
            rows = {"row": row, "index": index, "last": length[:, None] - 1}
            cross = {name: array for name, array in self.arrays.items() if not name.startswith("self")}
            sources = {name.replace("cross", "encoded"): array for name, array in encoded.caches.items()}
            self._run(self._admit, rows, cross, sources)
        self._waiting.clear()

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        rows: dict[str, Array],
        caches: dict[str, DeviceArray],
        sources: dict[str, DeviceArray],
    ) -> None:
        """Run a graph that writes ``caches`` in place."""
        numbers = {name: self._device.array(values) for name, values in rows.items()}
        outputs = {f"{name}_out": array for name, array in caches.items()}
        self._device.bind(session, numbers | caches | sources, outputs, {})()

    def written(self, positions: Array) -> None:
        """See `Cache`; a device's memory is taken whole from the start."""

    def deep(self) -> list[int]:
        """See `Cache`: none."""
        return []

    def give_back(self, rows: Sequence[int]) -> None:
        """See `Cache`; nothing is given back."""
