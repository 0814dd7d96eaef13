"""What PyTorch offers to make a loop fast on a GPU: compiled functions, CUDA graphs, copies that nobody waits for."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

AHEAD = 2
"""Steps that are handed to a GPU before the host waits to be told of the first."""
RECOMPILED = 64
"""How often a function may be compiled; PyTorch's own limit, after which it runs as it stands, is 8."""


def compiled(call: Callable[..., Any], sizes: Sequence[Sequence[int]]) -> Callable[..., Any]:
    """``call``, compiled once for all shapes (and once more where something is 1).

    ``sizes`` has for each argument the dimensions that change from call to call. An argument is a tensor, or a list of
    tensors of one shape.
    """
    import torch._dynamo
    from torch.fx.experimental import _config

    torch._dynamo.config.recompile_limit = RECOMPILED
    # Sizes that happen to be equal once need not be equal the next time.
    _config.use_duck_shape = False
    fast = torch.compile(call)

    def marked(*arguments: Tensor | list[Tensor]) -> Any:
        for argument, changing in zip(arguments, sizes, strict=True):
            for tensor in argument if isinstance(argument, list) else [argument]:
                for dimension in range(tensor.dim()):
                    if dimension in changing:
                        torch._dynamo.maybe_mark_dynamic(tensor, dimension)
                    else:
                        torch._dynamo.mark_static(tensor, dimension)
        return fast(*arguments)

    return marked


class Graphs:
    """Calls captured as CUDA graphs, which share the memory of what lies between their inputs and outputs."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call``, which reads and writes tensors at fixed addresses, as one launch. It is called a few times now."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()  # compiles, and lets libraries make what they make at first
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        return graph.replay


class Told:
    """A number on the device that changes with each step, as the host knows it: on a GPU, a few steps late."""

    def __init__(self, number: Tensor) -> None:
        self._number = number
        self._copies: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def after_step(self, known: int) -> int:
        """What the number is, or was, given that a step has been started; ``known`` when nothing newer is."""
        if self._number.device.type == "cpu":
            return int(self._number)
        copy = torch.empty(1, dtype=self._number.dtype, pin_memory=True)
        event = torch.cuda.Event()
        copy.copy_(self._number, non_blocking=True)
        event.record()
        self._copies.append((copy, event))
        if len(self._copies) <= AHEAD:
            return known
        copy, event = self._copies.popleft()
        event.synchronize()
        return int(copy)
