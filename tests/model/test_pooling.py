import re
from pathlib import Path

import pytest
import torch

from model.attention import scaled_dot_product_attention
from model.pooling import AttentionPooling, load, save

LENGTHS = torch.tensor([5, 2])


@pytest.fixture
def pooling() -> AttentionPooling:
    torch.manual_seed(3)
    return AttentionPooling(width=12, queries=3, narrow=4).eval()


@pytest.fixture
def memory() -> torch.Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 5, 12)


def test_each_query_gathers_the_memory_and_is_narrowed_on_its_own(
    pooling: AttentionPooling, memory: torch.Tensor
) -> None:
    """The equation of the docstring, a query at a time."""
    found = pooling(memory, LENGTHS)
    for row, length in enumerate(LENGTHS):
        seen = memory[row, :length]
        narrowed = []
        for number, query in enumerate(pooling.query):
            gathered = scaled_dot_product_attention(query[None], seen, seen)
            narrowed.append(gathered.output[0] @ pooling.value[number])
            torch.testing.assert_close(found.weights[row, number, :length], gathered.weights[0])
        expected = pooling.output.weight @ torch.cat(narrowed) + pooling.output.bias
        torch.testing.assert_close(found.vectors[row], expected / expected.norm())


def test_padding_is_not_looked_at(pooling: AttentionPooling, memory: torch.Tensor) -> None:
    other = memory.clone()
    other[1, 2:] = 1000.0
    assert torch.equal(pooling(other, LENGTHS).vectors, pooling(memory, LENGTHS).vectors)
    assert not pooling(memory, LENGTHS).weights[1, :, 2:].any()
    torch.testing.assert_close(pooling(memory, LENGTHS).weights.sum(-1), torch.ones(2, 3))


def test_vectors_have_length_one(pooling: AttentionPooling, memory: torch.Tensor) -> None:
    torch.testing.assert_close(pooling(memory, LENGTHS).vectors.norm(dim=-1), torch.ones(2))


def test_what_is_saved_is_loaded_as_fp16(pooling: AttentionPooling, tmp_path: Path) -> None:
    save(tmp_path / "pooling.safetensors", pooling)
    found = load(tmp_path / "pooling.safetensors", 12)
    for name, weight in pooling.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight.half().float())


def test_what_does_not_fit_is_said(pooling: AttentionPooling, tmp_path: Path) -> None:
    path = tmp_path / "pooling.safetensors"
    save(path, pooling)
    with pytest.raises(ValueError, match=re.escape("pooling.safetensors: Error(s) in loading state_dict")):
        load(path, 16)
    with torch.no_grad():
        pooling.output.bias[0] = torch.nan
    save(path, pooling)
    with pytest.raises(ValueError, match="holds values that are not finite"):
        load(path, 12)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"pooling\.safetensors: "):
        load(path, 12)
