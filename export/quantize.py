"""int8: weights rounded per output channel, activations per row; and the PyTorch model that rounds the same way.

Weights use 7 of the 8 bits (±63). With all 8, the integer product of a processor without VNNI (AVX2: vpmaddubsw)
clamps sums of two products to 16 bits and returns wrong numbers; with 7 the sums fit, and every processor returns the
same, exact product. The quantised model here is the definition of what an int8 bundle computes; the exporter writes
it down, the parity gate compares against it.
"""

import copy

import torch
from torch import Tensor, nn

from model.transformer import Transformer

WEIGHT_LIMIT = 63
ACTIVATION_LIMIT = 127
_EXACT_IN_FP32 = 2**24 // (WEIGHT_LIMIT * ACTIVATION_LIMIT)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` ``[out, in]`` as int8 ``[out, in]`` in ±63 and the size of one unit, fp32 ``[out]``."""
    unit = weight.abs().amax(dim=1).clamp(min=1e-30) / WEIGHT_LIMIT
    return torch.round(weight / unit[:, None]).to(torch.int8), unit


class QuantizedLinear(nn.Module):
    """A linear layer that computes with int8 weights and activations, in plain PyTorch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, unit = quantize_rows(linear.weight.detach())
        self.scale = unit * torch.tensor(1 / ACTIVATION_LIMIT)
        bias = linear.bias
        self.bias = torch.zeros(len(self.weight)) if bias is None else bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """fp32 ``[..., in]`` to fp32 ``[..., out]``."""
        magnitude = states.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
        rounded = torch.round(states / magnitude / torch.tensor(1 / ACTIVATION_LIMIT))
        # Whole numbers below 2^24 are exact in fp32, whatever the order of the sum; wider layers need fp64.
        exact = torch.float32 if self.weight.shape[1] <= _EXACT_IN_FP32 else torch.float64
        product = (rounded.to(exact) @ self.weight.T.to(exact)).float()
        return product * self.scale * magnitude + self.bias


class QuantizedEmbedding(nn.Module):
    """An embedding whose table is int8, each row with the size of its unit."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.unit = quantize_rows(embedding.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[...]`` to fp32 ``[..., width]``."""
        return self.weight[ids].float() * self.unit[ids][..., None]


def quantized(model: Transformer) -> Transformer:
    """A copy of ``model`` with every linear layer and embedding quantised; norms and biases stay fp32."""
    result = copy.deepcopy(model).eval()
    replacements: dict[nn.Module, nn.Module] = {}
    for parent in list(result.modules()):
        # Not named_children: it skips a module's second name, and tied embeddings have two.
        for name, module in parent._modules.items():
            if isinstance(module, nn.Linear) and module not in replacements:
                replacements[module] = QuantizedLinear(module)
            elif isinstance(module, nn.Embedding) and module not in replacements:
                replacements[module] = QuantizedEmbedding(module)
            if module in replacements:
                parent._modules[name] = replacements[module]
    return result
