"""A bundle's graphs run slowly and obviously: every buffer is bound anew at every step."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ort
from export.bundle import LOG_SOFTMAX, POOLING, capacity

Array = NDArray[Any]


class Stepper:
    """The encoder, decoding steps and the other graphs of one bundle, for one batch at a time.

    Sessions are those of the server, and so is the room of the caches: for as many positions as the model has.
    """

    def __init__(self, folder: Path, positions: int) -> None:
        self._folder, self._capacity = folder, capacity(positions)
        self.encoder, self.decoder, self.inspector = (
            ort.session(folder / f"{name}.onnx", threads=1) for name in ("encoder", "decoder", "attention")
        )
        self.caches: dict[str, Array] = {}
        """By the decoder's input names, ``self_key_0`` and so on; a step writes to them in place."""
        self.lengths = np.zeros(0, np.int32)

    def encode(self, source: Array, lengths: Array) -> Array:
        """Start on ``source`` ``[b, s]`` int64 with ``lengths`` ``[b]``; returns the memory ``[b, s, w]``."""
        names = [output.name for output in self.encoder.get_outputs()]
        feeds = {"source": source, "lengths": lengths.astype(np.int32)}
        outputs = dict(zip(names, self.encoder.run(names, feeds), strict=True))
        memory: Array = outputs.pop("memory")
        self.begin(outputs, lengths)
        return memory

    def begin(self, cross: dict[str, Array], lengths: Array, fill: int = 0) -> None:
        """Start on sources of ``lengths`` ``[b]`` whose keys and values are ``cross`` (``cross_key_0`` …).

        The caches of the target hold ``fill`` everywhere.
        """
        self.lengths = lengths.astype(np.int32)
        self.caches = dict(cross)
        rows, heads, _, head_width = cross["cross_key_0"].shape
        for name, array in cross.items():
            room = np.zeros((rows, heads, self._capacity, head_width), array.dtype)
            room[:, :, : array.shape[2]] = array
            self.caches[name] = room
            ends = array[np.arange(rows), :, lengths - 1]
            self.caches[name.replace("cross", "last")] = ends.reshape(rows, 1, heads * head_width)
        for value in self.decoder.get_inputs():
            if value.name.startswith("self_"):
                shape = (rows, heads, self._capacity, head_width)
                self.caches[value.name] = np.full(shape, fill, cross["cross_key_0"].dtype)

    def step(self, token: Array, position: int) -> Array:
        """One step at ``position`` after ``token`` ``[b]``: the log-probabilities ``[b, vocabulary]`` fp32."""
        binding = self.decoder.io_binding()
        feeds: dict[str, Array] = {
            "token": token.astype(np.int64),
            "position": np.full(len(token), position, np.int32),
            "lengths": self.lengths,
            "k": np.array([1]),
            "given": token.astype(np.int64),
            **self.caches,
        }
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        names = [output.name for output in self.decoder.get_outputs()]
        for name in names:
            if name.endswith("_out"):
                array = self.caches[name.removesuffix("_out")]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        self.decoder.run_with_iobinding(binding)
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        likely: Array = outputs[LOG_SOFTMAX].numpy()
        best = likely.argmax(-1)
        # What the graph itself says is best, and how likely, must be that of all tokens.
        told = outputs["tokens"].numpy()[:, 0], outputs["log_probabilities"].numpy()[:, 0]
        if not (np.array_equal(told[0], best) and np.array_equal(told[1], likely.max(-1))):
            likely = np.full_like(likely, np.nan)
        return likely

    def attention(self, source: Array, lengths: Array, target: Array) -> dict[str, Array]:
        """Weights and scores by name, such as ``decoder.1.cross.weights`` ``[b, heads, t, s]``."""
        names = [output.name for output in self.inspector.get_outputs()]
        feeds = {"source": source, "lengths": lengths.astype(np.int32), "target": target}
        return dict(zip(names, self.inspector.run(names, feeds), strict=True))

    def vectors(self, memory: Array, lengths: Array) -> Array:
        """Sentence vectors ``[b, w]`` from ``memory`` ``[b, s, w]``, where the bundle has a pooling."""
        vectors: Array
        session = ort.session(self._folder / f"{POOLING}.onnx", threads=1)
        [vectors] = session.run(["vectors"], {"memory": memory, "lengths": lengths.astype(np.int32)})
        return vectors
