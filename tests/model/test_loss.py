import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.loss import CHUNK, label_smoothed_cross_entropy


def inputs(tokens: int, width: int = 12, vocabulary: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return states, weight, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("tokens", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_value_and_gradients_equal_those_of_torch(tokens: int, smoothing: float) -> None:
    states, weight, labels = inputs(tokens)
    loss = label_smoothed_cross_entropy(states, weight, labels, smoothing)
    loss.backward()
    exact_states, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (states, weight))
    exact = cross_entropy(exact_states @ exact_weight.T, labels, label_smoothing=smoothing)
    exact.backward()
    torch.testing.assert_close(loss.double(), exact, atol=1e-6, rtol=1e-6)
    for mine, theirs in ((states.grad, exact_states.grad), (weight.grad, exact_weight.grad)):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine.double(), theirs, atol=1e-7, rtol=2e-5)


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_gradients_follow_what_is_done_with_the_loss(factor: float) -> None:
    states, weight, labels = inputs(CHUNK + 3)
    plain = torch.autograd.grad(label_smoothed_cross_entropy(states, weight, labels, 0.1), (states, weight))
    scaled = torch.autograd.grad(
        (label_smoothed_cross_entropy(states, weight, labels, 0.1) * factor) ** 1, (states, weight)
    )
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * factor)


def test_large_logits_stay_finite() -> None:
    states, weight, labels = inputs(5)
    loss = label_smoothed_cross_entropy(states * 1e3, weight, labels, 0.1)
    gradients = torch.autograd.grad(loss, (states, weight))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_under_autocast_it_is_near_the_same_and_gradients_stay_fp32() -> None:
    states, weight, labels = inputs(CHUNK + 7)
    exact = label_smoothed_cross_entropy(states, weight, labels, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_smoothed_cross_entropy(states, weight, labels, 0.1)
    torch.testing.assert_close(loss, exact, atol=0, rtol=1e-2)
    for rough, fine in zip(
        torch.autograd.grad(loss, (states, weight)), torch.autograd.grad(exact, (states, weight)), strict=True
    ):
        assert rough.dtype == torch.float32
        assert (rough - fine).norm() < 0.02 * fine.norm()
