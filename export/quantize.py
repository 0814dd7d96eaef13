"""int8: weights rounded per output channel, activations and the decoder's keys and values on calibrated scales; and
PyTorch that rounds the same way.

Weights use 7 of the 8 bits (±63). With all 8, the integer product of a processor without VNNI (AVX2: vpmaddubsw)
clamps sums of two products to 16 bits and returns wrong numbers; with 7 the sums fit, and every processor returns the
same, exact product. An activation's scale is a constant, found by running the model over text (`calibrate`): rows then
need no pass to find their largest value, and no row's numbers depend on another's. The keys and values a decoder
remembers are int8 with a scale a channel: a step reads all of them, and a quarter of the bytes is read sooner. The
quantised model here is the definition of what an int8 bundle computes; the exporter writes it down, the parity gate
compares against it.
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
CACHE_LIMIT = 127
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
        limit = max(abs(lowest), abs(highest))
        zero, steps = (0, ACTIVATION_LIMIT) if lowest >= 0 else (128, 127)
        return cls(_coarse(limit / steps), zero)


class Calibration(NamedTuple):
    """What running a model over text says about its numbers."""

    inputs: dict[str, Rounding]
    """How the input of every linear layer is rounded, by the layer's name."""
    caches: dict[str, Tensor]
    """The size of one unit of every channel ``[out]`` fp32 of the decoder's keys and values, by the layer's name."""


def _coarse(step: float) -> float:
    """The smallest number of `_STEP_BITS` bits that is not below ``step``."""
    mantissa, exponent = math.frexp(max(step, 1e-30))
    return math.ldexp(math.ceil(math.ldexp(mantissa, _STEP_BITS)), exponent - _STEP_BITS)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` ``[out, in]`` as int8 ``[out, in]`` in ±63 and the size of one unit, fp32 ``[out]``."""
    unit = weight.abs().amax(dim=1).clamp(min=1e-30) / WEIGHT_LIMIT
    return torch.round(weight / unit[:, None]).to(torch.int8), unit


class QuantizedLinear(nn.Module):
    """A linear layer that computes with int8 weights and uint8 activations, in plain PyTorch.

    With ``cache_unit`` ``[out]`` its result is what a cache of int8 keys or values gives back.
    """

    def __init__(self, linear: nn.Linear, rounding: Rounding, cache_unit: Tensor | None = None) -> None:
        super().__init__()
        self.rounding, self.cache_unit = rounding, cache_unit
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
        result = product * (self.unit * step) + self.bias
        if self.cache_unit is None:
            return result
        return torch.round(result * (1 / self.cache_unit)).clamp(-CACHE_LIMIT - 1, CACHE_LIMIT) * self.cache_unit


class QuantizedEmbedding(nn.Module):
    """An embedding whose table is int8, each row with the size of its unit."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.unit = quantize_rows(embedding.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[...]`` to fp32 ``[..., width]``."""
        return self.weight[ids].float() * self.unit[ids][..., None]


def calibrate(model: Transformer, pairs: Iterable[tuple[list[int], list[int]]]) -> Calibration:
    """The scales with which ``model`` can be quantised.

    ``pairs`` are source and target token ids (without start token). Each is run on its own, so padding has no say.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ranges = dict.fromkeys(linears, (0.0, 0.0))
    # By channel, and only of what a decoder keeps from step to step.
    peaks = {
        name: torch.zeros(linear.out_features)
        for name, linear in linears.items()
        if name.startswith("decoder.") and name.endswith((".key", ".value"))
    }

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            lowest, highest = ranges[name]
            ranges[name] = min(lowest, float(inputs[0].min())), max(highest, float(inputs[0].max()))
            if name in peaks:
                peaks[name] = torch.maximum(peaks[name], output.abs().amax(dim=(0, 1)))

        return linears[name].register_forward_hook(look)

    hooks = [watch(name) for name in linears]
    try:
        for source, target in pairs:
            with torch.inference_mode():
                model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[START, *target[:-1]]]))
    finally:
        for hook in hooks:
            hook.remove()
    return Calibration(
        {name: Rounding.of(*found) for name, found in ranges.items()},
        {name: torch.tensor([_coarse(each / CACHE_LIMIT) for each in peak.tolist()]) for name, peak in peaks.items()},
    )


def quantized(model: Transformer, calibration: Calibration) -> Transformer:
    """A copy of ``model`` with every linear layer and embedding quantised; norms and biases stay fp32.

    ``calibration`` is that of `calibrate`. Keys and values it has no unit for stay fp32, as in bundles of earlier
    versions; such a model cannot be exported.
    """
    result = copy.deepcopy(model).eval()
    replacements: dict[nn.Module, nn.Module] = {}
    for path, parent in list(result.named_modules()):
        # Not named_children: it skips a module's second name, and tied embeddings have two.
        for name, module in parent._modules.items():
            if isinstance(module, nn.Linear) and module not in replacements:
                full = f"{path}.{name}".removeprefix(".")
                replacements[module] = QuantizedLinear(module, calibration.inputs[full], calibration.caches.get(full))
            elif isinstance(module, nn.Embedding) and module not in replacements:
                replacements[module] = QuantizedEmbedding(module)
            if module in replacements:
                parent._modules[name] = replacements[module]
    return result
