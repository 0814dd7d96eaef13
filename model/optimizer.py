"""Muon: momentum whose update is made orthogonal, for the matrices inside a network."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor) -> Tensor:
    """Move the singular values of ``matrices`` ``[count, rows, columns]`` towards 1 by five Newton-Schulz steps.

    The coefficients are Jordan's (2024): fast rather than exact, singular values end between about 0.7 and 1.2.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(1, 2)
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = wide @ wide.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.baddbmm(wide, polynomial, wide, beta=3.4445)
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, matrices of one shape orthogonalised together.

    torch.optim.Muon does its Newton-Schulz steps in bf16, one matrix at a time: on a processor without bf16 products
    that costs more than the step itself. Here ``bf16`` says whether they are in it; momentum and weights are fp32. The
    update is scaled to the size of an AdamW update (0.2 √max(rows, columns), Moonshot AI 2025), so one learning rate
    serves both.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, bf16: bool = False) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; they must be matrices."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    state, gradient = self.state[parameter], parameter.grad
                    assert gradient is not None
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                scale = -group["lr"] * 0.2 * max(shape) ** 0.5
                orthogonal = orthogonalise(torch.stack(updates).to(self.dtype))
                for parameter, update in zip(parameters, orthogonal, strict=True):
                    parameter.add_(update, alpha=scale)
