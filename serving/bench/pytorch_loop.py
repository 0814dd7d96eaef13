"""PyTorch as a contestant: the model with keys and values kept, many sentences at a time, everything on the device.

On a GPU it is compiled (`torch.compile`) and each shape's step is captured as a CUDA graph; what fails there is left
out and said in `PyTorchLoop.setting`. The host runs a few steps ahead of the device: how many sentences are done it
learns a little late. Sentences are sorted by length; when half of a batch is done the rest goes on in a smaller one.
"""

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.corpus import pad
from model.transformer import Transformer
from serving.bench.pytorch_device import Graphs, Told, compiled
from serving.bench.pytorch_frame import Frame, Shape
from serving.bench.pytorch_network import Network
from serving.bench.pytorch_search import Beam, Greedy, Search
from serving.engine.decoding import Decoding

POSITIONS = 32
"""Positions are rounded up to a multiple of this: so few shapes there are."""
SMALLEST = 32
"""Sentences for which a step takes no longer than for fewer, on a GPU."""
ENCODED = 64
"""Sentences that are encoded together, no more of which are padded to the longest among them."""
COMPILED, CAPTURED, EAGER = LEVELS = ("torch.compile and CUDA graphs", "CUDA graphs", "eager")
"""From the fastest down."""


class PyTorchLoop:
    """A model ready to translate at most ``sentences`` at a time.

    With ``static`` shapes there are few of them: rows are a power of two, positions a multiple of `POSITIONS`.
    """

    def __init__(self, model: Transformer, precision: str, device: str, threads: int, sentences: int) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        self._network = Network(model, dtype, self._device)
        self._sentences = sentences
        self.static = device != "cpu"
        self._levels = deque(LEVELS if self.static else LEVELS[-1:])
        self._faults: list[str] = []
        self._forget()

    @classmethod
    def load(cls, path: Path, precision: str, device: str, threads: int, sentences: int) -> "PyTorchLoop":
        """The model that was saved at ``path``."""
        return cls(torch.load(path, weights_only=False), precision, device, threads, sentences)

    @property
    def setting(self) -> str:
        """How it computes."""
        return "; ".join([self._levels[0], *self._faults]) if self.static else ""

    def translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        """The best hypothesis of each of ``sources``, end token included."""
        if len(sources) > self._sentences:
            raise ValueError(f"{len(sources)} sentences at a time; there is room for {self._sentences}")
        while True:
            try:
                return self._translate(sources, decoding)
            except Exception as error:
                if len(self._levels) == 1:
                    raise
                fault = f"{self._levels.popleft()} failed: {type(error).__name__}: {str(error).strip()[:200]}"
                self._faults.append(" ".join(fault.split()))
                print(fault, file=sys.stderr)
            self._forget()

    def _forget(self) -> None:
        """Forget whatever was made ready."""
        self._frames: dict[Shape, Frame] = {}
        self._encoders: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Callable[[], None]]] = {}
        self._searches: dict[int, Search] = {}
        self._graphs = None if self._levels[0] == EAGER else Graphs()
        self._encode, self._step = self._network.encode, self._network.step
        if self._levels[0] == COMPILED:
            self._encode = compiled(self._encode, [[0, 1], [0]])
            self._step = compiled(self._step, [[0], [], [0, 4], [0, 4], [0]])

    @torch.no_grad()
    def _translate(self, sources: list[list[int]], decoding: Decoding) -> list[list[int]]:
        order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
        search = self._search(decoding.beam_size)
        frame = self._frame(self._rows(len(sources)), search, self._positions(len(sources[order[-1]])), 0)
        search.begin(len(sources), decoding)
        frame.begin(len(sources))
        self._read([sources[index] for index in order], frame)
        unfinished, told, steps = len(sources), Told(search.unfinished), 0
        while steps < decoding.max_tokens and unfinished:
            frame = self._fitting(frame, search, unfinished, steps)
            frame.step()
            steps += 1
            unfinished = told.after_step(unfinished)
        written = search.result(len(sources), steps)
        return [tokens for _, tokens in sorted(zip(order, written, strict=True))]

    def _rows(self, sentences: int) -> int:
        return 1 << (sentences - 1).bit_length() if self.static else sentences

    def _positions(self, count: int) -> int:
        rounded = -(-count // POSITIONS) * POSITIONS if self.static else count
        return min(rounded, self._network.config.max_positions)

    def _search(self, beam: int) -> Search:
        if beam not in self._searches:
            arguments = self._sentences, self._network.config.max_positions, self._device
            self._searches[beam] = search = Greedy(*arguments) if beam == 1 else Beam(*arguments, beam)
            if self._levels[0] == COMPILED:
                search.choose = compiled(search.choose, [[0], [], [0]])  # type: ignore[method-assign]
        return self._searches[beam]

    def _frame(self, sentences: int, search: Search, source: int, steps: int) -> Frame:
        """A frame in which at least one more step can be taken after ``steps``."""
        shape = Shape(sentences, search.beam, source, -(-(steps + 1) // POSITIONS) * POSITIONS)
        if shape not in self._frames:
            self._frames[shape] = Frame(self._network, self._step, search, shape, self._prepared)
        return self._frames[shape]

    def _fitting(self, frame: Frame, search: Search, unfinished: int, steps: int) -> Frame:
        """``frame``, or another one with its sentences when it is full or half of them are done."""
        rows = max(self._rows(unfinished), SMALLEST if self.static else 1)
        if rows > frame.shape.sentences // 2:
            rows = frame.shape.sentences
            if steps < frame.shape.target:
                return frame
        other = self._frame(rows, search, frame.shape.source, steps)
        other.take_over(frame, search.done[frame.sentence].long().argsort(stable=True)[:rows])
        return other

    def _read(self, sources: list[list[int]], frame: Frame) -> None:
        """Encode ``sources``, sorted by length, into ``frame``."""
        frame.lengths[: len(sources)] = torch.tensor(list(map(len, sources))).to(self._device)
        for begin in range(0, len(sources), ENCODED):
            part = sources[begin : begin + ENCODED]
            rows, positions = self._rows(len(part)), self._positions(len(part[-1]))
            source, lengths, encoded, run = self._encoder(rows, positions)
            source[: len(part), : len(part[-1])] = torch.from_numpy(pad(part)).long().to(self._device)
            lengths[: len(part)] = frame.lengths[begin : begin + len(part)]
            run()
            frame.cross[begin : begin + len(part), ..., :positions, :] = encoded[: len(part)]

    def _encoder(self, rows: int, positions: int) -> tuple[Tensor, Tensor, Tensor, Callable[[], None]]:
        """Source, lengths and what is encoded, and the call that encodes."""
        if (rows, positions) not in self._encoders:
            network, config, device = self._network, self._network.config, self._device
            source = torch.zeros(rows, positions, dtype=torch.int64, device=device)
            lengths = torch.ones(rows, dtype=torch.int64, device=device)
            shape = rows, config.decoder_layers, 2, config.heads, positions, config.head_width
            encoded = torch.zeros(shape, dtype=next(network.parameters()).dtype, device=device)

            def run() -> None:
                encoded.copy_(self._encode(source, lengths))

            self._encoders[rows, positions] = source, lengths, encoded, self._prepared(run)
        return self._encoders[rows, positions]

    def _prepared(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call`` as a CUDA graph, where that is so."""
        return self._graphs.capture(call) if self._graphs else call
