import pytest
import torch
from torch import Tensor

from model.optimizer import Muon, orthogonalise


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    ("rows", "columns"), [(16, 64), (64, 16), (40, 64), (64, 40), (8, 200), (32, 48), (2, 2), (1, 9)]
)
def test_singular_values_come_near_one(rows: int, columns: int, size: float) -> None:
    matrices = draw(3, rows, columns) * size
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.shape == (3, min(rows, columns))
    # Five steps lift what is at least some hundredths of the norm.
    relative = torch.linalg.svdvals(matrices) / matrices.norm(dim=(1, 2))[:, None]
    assert values.max() < 1.3
    assert values[relative > 0.02].min() > 0.6


def test_singular_vectors_stay() -> None:
    matrix = draw(1, 12, 20)
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = left.T @ orthogonalise(matrix)[0] @ right.T
    torch.testing.assert_close(inside, inside.diag().diag(), atol=1e-4, rtol=0)


def test_a_tall_matrix_is_treated_as_its_transpose() -> None:
    tall = draw(2, 30, 7)
    torch.testing.assert_close(orthogonalise(tall), orthogonalise(tall.transpose(1, 2)).transpose(1, 2))


def test_muon_fits_least_squares() -> None:
    inputs, truth = draw(200, 12), draw(12, 8, seed=1)
    weight = torch.zeros(12, 8, requires_grad=True)
    optimizer = Muon([weight], lr=0.3)
    losses = []
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 150)
        optimizer.zero_grad()
        loss = (inputs @ weight - inputs @ truth).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_the_first_step_is_the_orthogonal_gradient_at_the_size_of_adamw() -> None:
    weight = torch.zeros(10, 40, requires_grad=True)
    weight.grad = draw(10, 40)
    Muon([weight], lr=0.5).step()
    torch.testing.assert_close(weight.detach(), -0.5 * 0.2 * 40**0.5 * orthogonalise(draw(1, 10, 40))[0])
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.2)


def test_momentum_is_that_of_nesterov() -> None:
    weight = torch.zeros(4, 6, requires_grad=True)
    optimizer = Muon([weight], lr=1.0, momentum=0.9)
    first, second = draw(4, 6, seed=1), draw(4, 6, seed=2)
    for gradient in (first, second):
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
    momentum = 0.9 * (0.1 * first) + 0.1 * second
    expected = orthogonalise((0.1 * second + 0.9 * momentum)[None])[0] * 0.2 * 6**0.5
    torch.testing.assert_close(before - weight.detach(), expected, atol=1e-5, rtol=1e-5)


def test_parameters_of_one_shape_move_together_as_they_would_alone() -> None:
    shapes = [(6, 9), (9, 6), (6, 9), (6, 9), (9, 6), (4, 4)]

    def parameters() -> list[Tensor]:
        return [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]

    together, alone = parameters(), parameters()
    optimizers = [Muon(together, lr=0.1), *(Muon([parameter], lr=0.1) for parameter in alone)]
    for step in range(3):
        for group in (together, alone):
            for seed, parameter in enumerate(group):
                parameter.grad = draw(*parameter.shape, seed=100 * step + seed)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_parameter_without_gradient_stays() -> None:
    moved, still = draw(3, 5).requires_grad_(), draw(3, 5).requires_grad_()
    moved.grad = draw(3, 5, seed=1)
    Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, draw(3, 5))
    assert not torch.equal(moved, draw(3, 5))


def test_in_bf16_it_moves_nearly_the_same_way_and_weights_stay_fp32() -> None:
    fine, rough = draw(16, 40).requires_grad_(), draw(16, 40).requires_grad_()
    fine.grad, rough.grad = draw(16, 40, seed=1), draw(16, 40, seed=1)
    Muon([fine], lr=1.0).step()
    Muon([rough], lr=1.0, bf16=True).step()
    exact, change = fine.detach() - draw(16, 40), rough.detach() - draw(16, 40)
    assert change.dtype == torch.float32
    assert 0 < (change - exact).norm() < 0.05 * exact.norm()
