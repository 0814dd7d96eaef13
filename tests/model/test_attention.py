from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.attention import (
    CrossAttention,
    MaskedSelfAttention,
    MultiHeadAttention,
    SelfAttention,
    causal_visibility,
    padding_visibility,
    scaled_dot_product_attention,
)

WIDTH, HEADS, BATCH = 24, 4, 3
LENGTHS = torch.tensor([7, 1, 4])
VISIBLE = padding_visibility(LENGTHS, 7)


def formula(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    q, k, v = (tensor.double().numpy() for tensor in (query, key, value))
    scores = np.einsum("...qd,...kd->...qk", q, k) / np.sqrt(q.shape[-1])
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    if visible is not None:
        powers = powers * visible.numpy()
    weights = powers / powers.sum(-1, keepdims=True)
    return np.einsum("...qk,...kv->...qv", weights, v), weights


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def random_visibility(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(shape, generator=generator) < 0.5
    visible[..., int(torch.randint(shape[-1], (), generator=generator))] = True
    return visible


@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    queries=st.integers(1, 7),
    keys=st.integers(1, 7),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_is_the_formula_of_the_paper(
    batch: list[int], queries: int, keys: int, widths: tuple[int, int], masked: bool, seed: int
) -> None:
    query, key, value = draw(seed, (*batch, queries, widths[0]), (*batch, keys, widths[0]), (*batch, keys, widths[1]))
    visible = random_visibility(seed, queries, keys) if masked else None
    attended = scaled_dot_product_attention(query, key, value, visible)
    output, weights = formula(query, key, value, visible)
    np.testing.assert_allclose(attended.output.numpy(), output, atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(attended.weights.numpy(), weights, atol=2e-6, rtol=1e-5)


def test_attention_in_double_precision_is_the_formula_to_the_last_digits() -> None:
    query, key, value = (tensor.double() for tensor in draw(1, (2, 4, 50, 64), (2, 4, 70, 64), (2, 4, 70, 32)))
    visible = random_visibility(1, 2, 1, 1, 70)
    attended = scaled_dot_product_attention(query, key, value, visible)
    np.testing.assert_allclose(attended.output.numpy(), formula(query, key, value, visible)[0], atol=1e-13)


def test_scores_are_scaled_dot_products_before_the_mask() -> None:
    query, key, value = draw(2, (5, 16), (6, 16), (6, 3))
    scores = scaled_dot_product_attention(query, key, value, random_visibility(2, 5, 6)).scores
    torch.testing.assert_close(scores, torch.stack([(key @ row) / 4 for row in query]))


@given(queries=st.integers(1, 6), keys=st.integers(1, 9), spread=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_weights_sum_to_one_and_hidden_keys_weigh_nothing(queries: int, keys: int, spread: float, seed: int) -> None:
    query, key, value = draw(seed, (queries, 4), (keys, 4), (keys, 4))
    visible = random_visibility(seed, queries, keys)
    weights = scaled_dot_product_attention(spread * query, key, value, visible).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(queries))
    assert (weights[~visible] == 0).all()
    assert (weights >= 0).all()


def test_causal_visibility_hides_the_future_only() -> None:
    visible = causal_visibility(5)
    assert [[bool(visible[i, j]) for j in range(5)] for i in range(5)] == [[j <= i for j in range(5)] for i in range(5)]


def test_padding_visibility_shows_tokens_only() -> None:
    assert VISIBLE.shape == (3, 1, 1, 7)
    assert [row.sum().item() for row in VISIBLE] == LENGTHS.tolist()
    assert all(row[0, 0, :length].all() for row, length in zip(VISIBLE, LENGTHS, strict=True))


def use(attention: MultiHeadAttention, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    match attention:
        case SelfAttention():
            attended = attention(source, VISIBLE)
        case MaskedSelfAttention():
            attended = attention(target)
        case CrossAttention():
            attended = attention(target, source, VISIBLE)
    return attended.output, attended.weights


@pytest.mark.parametrize("heads", [1, 4, 24])
@pytest.mark.parametrize("kind", [SelfAttention, MaskedSelfAttention, CrossAttention])
def test_multi_head_attention_equals_that_of_torch(
    kind: type[MultiHeadAttention],
    heads: int,
    twin: Callable[[nn.Module], nn.Module],
    scramble: Callable[..., nn.Module],
) -> None:
    ours = scramble(kind(WIDTH, heads))
    target, source = draw(3, (BATCH, 5, WIDTH), (BATCH, 7, WIDTH))
    query, memory = {
        SelfAttention: (source, source),
        MaskedSelfAttention: (target, target),
        CrossAttention: (target, source),
    }[kind]
    hidden = (
        {"attn_mask": ~causal_visibility(5)} if kind is MaskedSelfAttention else {"key_padding_mask": ~VISIBLE[:, 0, 0]}
    )
    expected = twin(ours)(query, memory, memory, average_attn_weights=False, **hidden)
    torch.testing.assert_close(use(ours, target, source), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("position", range(5))
def test_no_position_sees_its_future(position: int, scramble: Callable[..., nn.Module]) -> None:
    attention = scramble(MaskedSelfAttention(WIDTH, HEADS))
    target, other = draw(4, (BATCH, 5, WIDTH), (BATCH, 5, WIDTH))
    changed = torch.cat((target[:, :position], other[:, position:]), dim=1)
    before, after = attention(target).output, attention(changed).output
    torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
    assert (after[:, position:] - before[:, position:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_what_the_padding_holds_and_how_much_there_is_changes_nothing(
    kind: type[MultiHeadAttention], scramble: Callable[..., nn.Module]
) -> None:
    attention = scramble(kind(WIDTH, HEADS))
    target, source, noise = draw(5, (BATCH, 5, WIDTH), (BATCH, 7, WIDTH), (BATCH, 12, WIDTH))
    inside = padding_visibility(LENGTHS, 12)
    other = torch.where(inside[:, 0, 0, :, None], nn.functional.pad(source, (0, 0, 0, 5)), 100 * noise)
    if kind is SelfAttention:
        before, after = attention(source, VISIBLE).output, attention(other, inside).output[:, :7]
        real = VISIBLE[:, 0, 0]
        before, after = before[real], after[real]
    else:
        before, after = attention(target, source, VISIBLE).output, attention(target, other, inside).output
    torch.testing.assert_close(after, before, atol=2e-6, rtol=0)
