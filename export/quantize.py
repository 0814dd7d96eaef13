"""int8: weights rounded per output channel, activations on a calibrated scale; and PyTorch that rounds the same way.

Weights use 7 of the 8 bits (±63). With all 8, the integer product of a processor without VNNI (AVX2: vpmaddubsw)
clamps sums of two products to 16 bits and returns wrong numbers; with 7 the sums fit, and every processor returns the
same, exact product. An activation's scale is a constant, found by running the model over text (`calibrate`): rows then
need no pass to find their largest value, and no row's numbers depend on another's. The quantised model here is the
definition of what an int8 bundle computes; the exporter writes it down, the parity gate compares against it.
"""

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.tokenizer import START
from model.transformer import Transformer

WEIGHT_LIMIT = 63
ACTIVATION_LIMIT = 255
_EXACT_IN_FP32 = 2**24 // (WEIGHT_LIMIT * ACTIVATION_LIMIT)
# The last bits of what calibration sees differ between processors and numbers of threads; a step must not.
_STEP_BITS = 10


class Rounding(NamedTuple):
    """How an activation becomes uint8: round(x / ``step``) + ``zero``, clamped to 0 … 255."""

    step: float
    """A number of `_STEP_BITS` bits."""
    zero: int
    """128, or 0 where nothing is negative (after ReLU), which makes the steps half as wide."""

    @classmethod
    def of(cls, lowest: float, highest: float) -> "Rounding":
        """The rounding that just holds ``lowest`` to ``highest``."""
        limit = max(abs(lowest), abs(highest), 1e-30)
        zero, steps = (0, ACTIVATION_LIMIT) if lowest >= 0 else (128, 127)
        mantissa, exponent = math.frexp(limit / steps)
        return cls(math.ldexp(math.ceil(math.ldexp(mantissa, _STEP_BITS)), exponent - _STEP_BITS), zero)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` ``[out, in]`` as int8 ``[out, in]`` in ±63 and the size of one unit, fp32 ``[out]``."""
    unit = weight.abs().amax(dim=1).clamp(min=1e-30) / WEIGHT_LIMIT
    return torch.round(weight / unit[:, None]).to(torch.int8), unit


class QuantizedLinear(nn.Module):
    """A linear layer that computes with int8 weights and uint8 activations, in plain PyTorch."""

    def __init__(self, linear: nn.Linear, rounding: Rounding) -> None:
        super().__init__()
        self.rounding = rounding
        self.weight, self.unit = quantize_rows(linear.weight.detach())
        bias = linear.bias
        self.bias = torch.zeros(len(self.weight)) if bias is None else bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """fp32 ``[..., in]`` to fp32 ``[..., out]``."""
        step, zero = self.rounding
        rounded = (torch.round(states / step) + zero).clamp(0, ACTIVATION_LIMIT) - zero
        # Whole numbers below 2^24 are exact in fp32, whatever the order of the sum; wider layers need fp64.
        exact = torch.float32 if self.weight.shape[1] <= _EXACT_IN_FP32 else torch.float64
        product = (rounded.to(exact) @ self.weight.T.to(exact)).float()
        return product * (self.unit * step) + self.bias


class QuantizedEmbedding(nn.Module):
    """An embedding whose table is int8, each row with the size of its unit."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.unit = quantize_rows(embedding.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[...]`` to fp32 ``[..., width]``."""
        return self.weight[ids].float() * self.unit[ids][..., None]


@torch.inference_mode()
def calibrate(model: Transformer, pairs: Iterable[tuple[list[int], list[int]]]) -> dict[str, Rounding]:
    """A rounding for the input of every linear layer of ``model``, by its name.

    ``pairs`` are source and target token ids (without start token). Each is run on its own, so padding has no say.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ranges = dict.fromkeys(linears, (0.0, 0.0))

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            lowest, highest = ranges[name]
            ranges[name] = min(lowest, float(inputs[0].min())), max(highest, float(inputs[0].max()))

        return linears[name].register_forward_pre_hook(look)

    hooks = [watch(name) for name in linears]
    try:
        for source, target in pairs:
            model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[START, *target[:-1]]]))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Rounding.of(*found) for name, found in ranges.items()}


def quantized(model: Transformer, roundings: dict[str, Rounding]) -> Transformer:
    """A copy of ``model`` with every linear layer and embedding quantised; norms and biases stay fp32.

    ``roundings`` are those of `calibrate`.
    """
    result = copy.deepcopy(model).eval()
    replacements: dict[nn.Module, nn.Module] = {}
    for path, parent in list(result.named_modules()):
        # Not named_children: it skips a module's second name, and tied embeddings have two.
        for name, module in parent._modules.items():
            if isinstance(module, nn.Linear) and module not in replacements:
                replacements[module] = QuantizedLinear(module, roundings[f"{path}.{name}".removeprefix(".")])
            elif isinstance(module, nn.Embedding) and module not in replacements:
                replacements[module] = QuantizedEmbedding(module)
            if module in replacements:
                parent._modules[name] = replacements[module]
    return result
