import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.quantize import (
    WEIGHT_LIMIT,
    QuantizedEmbedding,
    QuantizedLinear,
    Rounding,
    calibrate,
    quantize_rows,
    quantized,
)
from model.config import ModelConfig
from model.tokenizer import END
from model.transformer import Transformer


def random_rows() -> torch.Tensor:
    """Rows of sizes from 1e-20 to 1e20, and one of zeros."""
    rows = torch.randn(41, 96, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-20, 21)[:, None]
    return torch.cat((rows, torch.zeros(1, 96)))


def test_weights_use_seven_bits_and_are_off_by_at_most_half_a_unit() -> None:
    weight = random_rows()
    integers, unit = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert (integers[:-1].abs().amax(1) == 63).all()
    error = (integers.double() * unit.double()[:, None] - weight.double()).abs()
    assert (error <= unit.double()[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zeros() -> None:
    integers, unit = quantize_rows(random_rows())
    assert not integers[-1].any()
    assert unit.isfinite().all()
    assert (unit > 0).all()


def test_an_embedding_is_off_by_at_most_half_a_unit() -> None:
    embedding = torch.nn.Embedding.from_pretrained(random_rows())
    found, ids = QuantizedEmbedding(embedding), torch.tensor([[0, 41], [20, 7]])
    half = embedding(ids).abs().amax(-1, keepdim=True) / WEIGHT_LIMIT / 2
    assert ((found(ids) - embedding(ids)).abs() <= half * 1.001).all()


def test_a_linear_layer_is_close_to_the_one_it_replaces() -> None:
    torch.manual_seed(0)
    linear, states = torch.nn.Linear(256, 64), torch.randn(9, 256)
    expected = linear(states)
    rounding = Rounding.of(float(states.min()), float(states.max()))
    assert (QuantizedLinear(linear, rounding)(states) - expected).norm() < 0.02 * expected.norm()


def test_a_wide_linear_layer_sums_without_an_error() -> None:
    """Its sums pass 2^24, up to which fp32 holds every whole number."""
    linear = torch.nn.Linear(4096, 1)
    linear.weight.data.fill_(1)
    linear.bias.data.zero_()
    layer = QuantizedLinear(linear, Rounding(1.0, 0))
    states = torch.full((1, 4096), 255.0)
    states[0, 0] = 254
    assert layer(states).item() == np.float32(63 * (255 * 4096 - 1)) * (layer.unit * 1.0).item()


WIDTHS = st.floats(1e-20, 1e20, allow_subnormal=False)


@given(WIDTHS, WIDTHS)
def test_a_rounding_around_128_just_holds_its_range(below: float, above: float) -> None:
    step, zero = Rounding.of(-below, above)
    limit = max(below, above)
    assert zero == 128
    assert limit <= 127 * step * (1 + 1e-12) <= limit * (1 + 2**-9 + 1e-11)
    assert (torch.round(torch.tensor([-limit, limit]) / step) + zero).tolist() == [1.0, 255.0]


@given(WIDTHS)
def test_a_range_without_negative_numbers_starts_at_0_and_has_finer_steps(above: float) -> None:
    step, zero = Rounding.of(0.0, above)
    assert zero == 0
    assert above <= 255 * step * (1 + 1e-12) <= above * (1 + 2**-9 + 1e-11)


def test_an_input_that_is_always_0_has_a_rounding_all_the_same() -> None:
    assert 0 < Rounding.of(0.0, 0.0).step < 1e-30


@given(st.floats(1e-6, 1e6))
def test_a_step_is_exact_in_fp32(limit: float) -> None:
    step = Rounding.of(-limit, limit).step
    assert step == np.float32(step)


def test_the_last_bits_of_a_range_hardly_ever_reach_the_step() -> None:
    """They differ between processors and numbers of threads, and a bundle's bytes must not."""
    limits = np.random.default_rng(0).uniform(0.01, 100, 2000).astype(np.float32)
    steps = [
        [Rounding.of(0.0, float(limit)).step for limit in (each, np.nextafter(each, np.float32(0)))] for each in limits
    ]
    assert sum(one != other for one, other in steps) <= 4


def test_what_lies_outside_the_range_is_clamped() -> None:
    linear = torch.nn.Linear(1, 1)
    linear.weight.data.fill_(1)
    linear.bias.data.zero_()
    around, above = (QuantizedLinear(linear, rounding) for rounding in (Rounding(1.0, 128), Rounding(1.0, 0)))
    states = torch.tensor([[-1e9], [-128.0], [-3.4], [0.0], [0.5], [1.5], [127.0], [128.0], [255.0], [1e9]])
    # Halves go to the even neighbour, as in ONNX.
    assert around(states).round().flatten().tolist() == [-128, -128, -3, 0, 0, 2, 127, 127, 127, 127]
    assert above(states).round().flatten().tolist() == [0, 0, 0, 0, 0, 2, 127, 128, 255, 255]


def test_only_seven_bits_of_weight_fit_the_sixteen_bit_sums_of_avx2() -> None:
    # vpmaddubsw adds two products of an unsigned and a signed byte into 16 signed bits.
    assert 2 * 255 * WEIGHT_LIMIT <= np.iinfo(np.int16).max < 2 * 255 * 127


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocabulary": 40, "width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}
    return Transformer(ModelConfig(**shape, tied_embeddings=request.param, dropout=0.1))


PAIRS = [([4, 9, 30, 7, END], [11, 12, END]), ([5, END], [8, 9, 10, 11, 12, END])]


def calibrated(model: Transformer) -> Transformer:
    return quantized(model, calibrate(copy.deepcopy(model).eval(), PAIRS))


def test_every_linear_layer_has_a_rounding_that_just_holds_what_it_reads(model: Transformer) -> None:
    model.eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
    roundings = calibrate(model, PAIRS)
    assert set(roundings) == set(seen)
    for name, rounding in roundings.items():
        read = torch.cat([states.flatten() for states in seen[name]])
        assert rounding == Rounding.of(min(0.0, float(read.min())), float(read.max()))
        assert rounding.zero == (0 if name.endswith(".outer") else 128)  # after ReLU


def test_layers_that_read_the_same_states_get_the_same_rounding(model: Transformer) -> None:
    """The graphs round such states once."""
    found = calibrate(model.eval(), PAIRS)
    for attention in ("encoder.0.self_attention", "decoder.0.self_attention"):
        assert found[f"{attention}.query"] == found[f"{attention}.key"] == found[f"{attention}.value"]
    assert found["decoder.0.cross_attention.key"] == found["decoder.0.cross_attention.value"]


def test_calibration_reads_each_pair_alone_and_leaves_no_trace(model: Transformer) -> None:
    """Alone there is no padding, whose states would widen the ranges."""
    model.eval()
    one, other = (calibrate(model, [pair]) for pair in PAIRS)
    both = calibrate(model, PAIRS)
    assert one != both != other
    assert all(both[name].step == max(one[name].step, other[name].step) for name in both)
    assert calibrate(model, reversed(PAIRS)) == both
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_calibration_that_fails_leaves_no_hook_behind(model: Transformer) -> None:
    with pytest.raises(IndexError):
        calibrate(model, [([4, 999], [5])])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gelu_gives_negative_numbers_and_so_a_rounding_around_128() -> None:
    torch.manual_seed(0)
    shape = {"vocabulary": 40, "width": 16, "heads": 2, "feed_forward": 24, "encoder_layers": 1, "decoder_layers": 1}
    found = calibrate(Transformer(ModelConfig(**shape, activation="gelu")).eval(), PAIRS)
    assert {rounding.zero for rounding in found.values()} == {128}


def test_every_linear_layer_and_embedding_is_replaced(model: Transformer) -> None:
    result = calibrated(model)
    assert not [module for module in result.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert sum(isinstance(module, QuantizedLinear) for module in result.modules()) == linears
    assert isinstance(result.source_embedding, QuantizedEmbedding)
    assert isinstance(result.target_embedding, QuantizedEmbedding)
    assert (result.source_embedding is result.target_embedding) == model.config.tied_embeddings
    shared = torch.equal(result.source_embedding.weight, result.projection.weight)
    assert shared == model.config.tied_embeddings


def test_quantising_leaves_the_original_as_it_was(model: Transformer) -> None:
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    result = calibrated(model)
    for norm in (module for module in result.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.weight.data.zero_()
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training
    assert not result.training
