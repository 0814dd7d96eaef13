"""Label-smoothed cross-entropy over a large vocabulary."""

from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Tokens whose logits exist at one time: 512 × 8,000 fp32 logits are 16 MB and stay in a processor's cache."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Projects, takes the loss and its gradient chunk by chunk, so that the whole logits never lie in memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        states_gradient = torch.empty_like(states)
        weight_gradient = torch.zeros_like(weight)
        vocabulary, device = weight.shape[0], states.device.type
        # Autocast would cast the weight and each gradient anew for every product.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, weight = states.to(dtype), weight.to(dtype)
        for begin in range(0, len(states), CHUNK):
            chunk, label = states[begin : begin + CHUNK], labels[begin : begin + CHUNK, None]
            logits = (chunk @ weight.T).float()
            normaliser = logits.logsumexp(-1, keepdim=True)
            expected = (1 - smoothing) * logits.gather(1, label) + smoothing * logits.mean(-1, keepdim=True)
            total += (normaliser - expected).sum()
            gradient = logits.sub_(normaliser).exp_().sub_(smoothing / vocabulary)
            gradient.scatter_add_(1, label, gradient.new_full(label.shape, smoothing - 1))
            gradient = gradient.to(dtype)
            states_gradient[begin : begin + CHUNK] = gradient @ weight
            weight_gradient += gradient.T @ chunk
        ctx.save_for_backward(states_gradient, weight_gradient)
        return total / len(states)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states_gradient, weight_gradient = ctx.saved_tensors
        scale = upstream[0] / len(states_gradient)
        return states_gradient * scale, weight_gradient * scale, None, None


def label_smoothed_cross_entropy(states: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean loss in nats a token, of ``states`` ``[tokens, width]`` projected by ``weight`` ``[vocabulary, width]``.

    Of each target's probability mass ``smoothing`` is spread evenly over the vocabulary (section 5.4). The value and
    its gradients equal those of ``torch.nn.functional.cross_entropy(states @ weight.T, labels, label_smoothing=…)``.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(states, weight, labels, smoothing)  # type: ignore[no-untyped-call]
    return loss
